const dark = matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.onchange = setTheme;
setTheme();

SwaggerUIBundle({
	url: "openapi.json",
	dom_id: "#swagger-ui",
	deepLinking: true,
	displayRequestDuration: true,
	defaultModelsExpandDepth: 0, // the schemas are folded
	defaultModelExpandDepth: 3,
});
