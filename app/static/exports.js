/** Exports: results as CSV, a request as code, an image with its heat map. */

import { percent } from "./words.js";

/** A field of RFC 4180. An apostrophe is put before text that a spreadsheet would run as a formula. */
function field(value) {
	let text = String(value ?? "");
	if (typeof value === "string" && /^\s*[=+\-@\t\r]/.test(text)) text = `'${text}`;
	return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Jobs as CSV, one row each, with a column for each class's probability. */
export function csvOf(jobs, card) {
	const { labels } = card;
	const head = ["name", "label", "probability", "in_distribution", "verdict", "accepted", "width", "height", "views", "warnings"];
	const rows = jobs.map(({ name, answer, copy, problem, state, right }) => {
		const result = answer?.result;
		const first = result?.top_k[0];
		const shares = new Map(result?.top_k.map(({ label, probability }) => [label, probability]));
		return [
			...[name, first?.label, first?.probability, result?.in_distribution, result?.verdict, result?.accepted],
			...[result?.width, result?.height, result?.views, result && [...result.warnings, ...(copy ? ["result of a JPEG copy"] : [])].join("; ")],
			...[problem?.message ?? (result ? "" : state), answer?.model.name, answer?.model.version, right],
			...labels.map((label) => shares.get(label)),
		];
	});
	const lines = [[...head, "problem", "model", "version", "right_label", ...labels], ...rows];
	return lines.map((line) => `${line.map(field).join(",")}\r\n`).join("");
}

/** Let the browser save a file. */
export function save(blob, name) {
	const link = document.createElement("a");
	link.href = URL.createObjectURL(blob);
	link.download = name;
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Quoted for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The result as JSON, and programs that send a file of the current folder to the same URL: [[title, text], ...]. */
export function codeOf({ name, answer }, path, hasKey) {
	const url = new URL(path, document.baseURI).href;
	const file = `"./${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`; // quoted for curl, which splits at ; and ,
	const key = (value) => (hasKey ? value : "");
	const [nameText, urlText, type] = [name, url, "application/octet-stream"].map((text) => JSON.stringify(text));
	return Object.entries({
		JSON: JSON.stringify({ model: answer.model, results: [answer.result] }, null, 2),
		curl: `curl -F ${quoted(`file=@${file}`)}${key(' -H "X-API-Key: $TENFOLD_API_KEY"')} ${quoted(url)}`,
		Python: `import json
${key("import os\n")}import urllib.request

with open(${nameText}, "rb") as file:
    image = file.read()
headers = {"Content-Type": ${type}${key(', "X-API-Key": os.environ["TENFOLD_API_KEY"]')}}
request = urllib.request.Request(${urlText}, image, headers)
with urllib.request.urlopen(request) as response:
    print(json.dumps(json.load(response), indent=2))`,
		JavaScript: `// Node.js 18 or newer; save it as classify.mjs
const { readFile } = await import("node:fs/promises");

const body = await readFile(${nameText});
const headers = { "Content-Type": ${type}${key(', "X-API-Key": process.env.TENFOLD_API_KEY')} };
const response = await fetch(${urlText}, { method: "POST", headers, body });
console.log(JSON.stringify(await response.json(), null, 2));`,
	});
}

const LONGEST = 1600; // longer side of the saved image, pixels

/** The image with the heat map to the right of the divider, and the result below it, as a PNG. */
export async function annotated(image, canvas, divider, title, { result, model }) {
	const scale = Math.min(1, LONGEST / Math.max(image.naturalWidth, image.naturalHeight));
	const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(1, Math.round(side * scale)));
	const side = Math.max(width, 320);
	const line = Math.max(18, side / 28);
	const target = new OffscreenCanvas(side, height + Math.round(3.4 * line));
	const context = target.getContext("2d");
	const fill = (style, mode, ...area) => {
		Object.assign(context, { fillStyle: style, globalCompositeOperation: mode });
		context.fillRect(...area);
	};
	fill("white", "source-over", 0, 0, target.width, target.height);
	context.drawImage(image, 0, 0, width, height);
	if (divider < 1) {
		const [left, right] = [divider * width, (1 - divider) * width];
		context.globalAlpha = 0.6; // as in page.css
		fill("gray", "saturation", left, 0, right, height);
		Object.assign(context, { globalAlpha: 1, globalCompositeOperation: "source-over" });
		context.drawImage(canvas, divider * canvas.width, 0, (1 - divider) * canvas.width, canvas.height, left, 0, right, height);
	}
	const classes = result.top_k.slice(0, 3).map(({ label, probability }) => `${label} ${percent(probability)}`).join(", ");
	for (const [i, text] of [title, `${classes} (${model.name} ${model.version})`].entries()) {
		context.fillStyle = "black";
		context.font = `${i ? "" : "bold "}${line * (i ? 0.7 : 1)}px sans-serif`;
		context.fillText(text, line / 2, height + line * (1.4 + 1.3 * i), side - line);
	}
	return target.convertToBlob({ type: "image/png" });
}
