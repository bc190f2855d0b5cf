/** Exports: results as CSV, a request as a curl command. */

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
	const rows = jobs.map(({ name, answer, problem, state }) => {
		const result = answer?.result;
		const first = result?.top_k[0];
		const shares = new Map(result?.top_k.map(({ label, probability }) => [label, probability]));
		return [
			...[name, first?.label, first?.probability, result?.in_distribution, result?.verdict, result?.accepted],
			...[result?.width, result?.height, result?.views, result?.warnings.join("; ")],
			...[problem?.message ?? (result ? "" : state), answer?.model.name, answer?.model.version],
			...labels.map((label) => shares.get(label)),
		];
	});
	const lines = [[...head, "problem", "model", "version", ...labels], ...rows];
	return lines.map((line) => `${line.map(field).join(",")}\r\n`).join("");
}

/** Quoted for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command that sends a file of the current folder to the same URL. */
export function curlOf(name, path, hasKey) {
	const url = new URL(path, document.baseURI).href;
	const file = `"./${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`; // quoted for curl, which splits at ; and ,
	const key = hasKey ? ' -H "X-API-Key: $TENFOLD_API_KEY"' : "";
	return `curl -F ${quoted(`file=@${file}`)}${key} ${quoted(url)}`;
}
