/** The section about the model, out of GET /model. */

import { find, h } from "./dom.js";
import { count, percent, thousands } from "./words.js";

export function showCard(card) {
	const { name, labels, metrics, input, openvino } = card;
	find("chip").replaceChildren(name, h("span", card.files["model.safetensors"].slice(0, 12)));
	find("classes").replaceChildren(...labels.map((label) => h("li", label)));
	const others = Object.entries(metrics.accepted).filter(([kind]) => kind !== "test");
	const smaller = openvino ? `; ${percent(openvino.top1)} by its smaller copy for CPUs` : "";
	const facts = [
		["Right", percent(metrics.top1), `of ${thousands(metrics.pictures)} test pictures${smaller}`],
		["Calibration error", percent(metrics.ece), "how far its percentages are from how often it is right, on average"],
		["Sees", `${input.crop} × ${input.crop}`, "pixels of each view, whatever the size of the picture"],
	];
	find("facts").replaceChildren(...facts.map(([term, ...rest]) => h("div", h("dt", term), rest.map((text) => h("dd", text)))));
	const ten = count(labels.length);
	const cannot = [
		`It knows ${ten} classes and nothing else. Whatever it is shown, it ranks these ${ten}.`,
		"Its percentages are calibrated on pictures like those it was tested on. On photographs from elsewhere it is surer than it is right.",
		`It notices only in part that a picture is none of them: it accepted ${percent(metrics.accepted.test)} of the test pictures, but also ` +
			`${others.map(([kind, share]) => `${percent(share)} of ${kind}`).join(", ")}.`,
		"A heat map tells what its last layer answered to, not why: it is a hint, not a reason.",
	];
	find("cannot").replaceChildren(...cannot.map((text) => h("li", text)));
	const { confusion, reliability } = metrics;
	find("figures").replaceChildren(...[confusion && confusionOf(labels, confusion), reliability && reliabilityOf(reliability)].filter(Boolean));
	find("model").hidden = false;
}

const figure = (title, text, ...parts) => h("figure", h("figcaption", h("h3", title), h("p.note", text)), parts);
const heads = (scope, titles) => titles.map((title) => h("th", { scope }, title));

function confusionOf(labels, rows) {
	const body = rows.map((row, i) => {
		const total = row.reduce((sum, value) => sum + value, 0) || 1;
		const cells = row.map((value, j) => {
			// Mistakes are few: four times as strong, and the square root, make them seen.
			const strength = Math.sqrt(Math.min(1, (value / total) * (i === j ? 1 : 4)));
			return h("td", { class: `${i === j ? "right" : ""} ${strength > 0.6 ? "strong" : ""}`, "--strength": strength }, String(value));
		});
		return h("tr", heads("row", [labels[i]]), cells);
	});
	const table = h("table.confusion", h("thead", h("tr", heads("col", ["true class", ...labels]))), h("tbody", body));
	const title = "What it takes for what";
	const scroll = h("div.scroll", { tabindex: 0, role: "region", "aria-label": title }, table);
	return figure(title, "Test pictures by true class (rows) and answered class (columns).", scroll);
}

function reliabilityOf(bins) {
	const BINS = 15;
	const [size, low] = [280, 42];
	const at = (share) => low + share * (size - low - 8);
	const most = Math.max(...bins.map(({ pictures }) => pictures));
	const width = at(1 / BINS) - low;
	const bars = bins.map(({ confidence, accuracy, pictures }) => {
		const x = at(Math.min(BINS - 1, Math.floor(confidence * BINS)) / BINS) + 1;
		const height = at(accuracy) - low;
		return h("rect", { x, y: size - low - height, width: width - 2, height, opacity: 0.35 + 0.65 * Math.sqrt(pictures / most) });
	});
	const tick = (x, y, share) => h("text", { x, y, "text-anchor": "end" }, `${share * 100} %`);
	const ticks = [0, 0.5, 1].map((share) => [tick(at(share) + 4, size - 16, share), tick(low - 4, size - at(share) + 4, share)]);
	const line = (share) => h("line", { x1: low, y1: size - low, x2: at(1), y2: size - at(share) });
	const svg = h("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "Reliability diagram, as in the table below" }, bars, line(0), line(1), ticks);
	const rows = bins.map(({ confidence, accuracy, pictures }) =>
		h("tr", [percent(confidence), percent(accuracy), thousands(pictures)].map((value) => h("td", value))),
	);
	const head = h("thead", h("tr", heads("col", ["how sure", "how often right", "pictures"])));
	const table = h("details", h("summary", "As a table"), h("table", head, h("tbody", rows)));
	return figure("How sure, how right", "How often it is right (upwards) when it is so sure (to the right); on the line they are equal. Pale: few pictures.", svg, table);
}
