/** The section about the model, from GET /model. */

import { find, h } from "./dom.js";
import { count, percent, thousands } from "./words.js";

export function showCard(card) {
	const { name, version, labels, metrics, input, openvino } = card;
	find("chip").replaceChildren(name, h("span", version));
	find("classes").replaceChildren(...labels.map((label) => h("li", label)));
	const others = Object.entries(metrics.accepted).filter(([kind]) => kind !== "test");
	const quantised = openvino ? `; ${percent(openvino.top1)} with the quantised model for CPUs` : "";
	const facts = [
		["Accuracy", percent(metrics.top1), `of ${thousands(metrics.pictures)} test images${quantised}`],
		["Calibration error", percent(metrics.ece), "mean difference between confidence and accuracy"],
		["Input", `${input.crop} × ${input.crop}`, "pixels of each view, for an image of any size"],
	];
	find("facts").replaceChildren(...facts.map(([term, ...rest]) => h("div", h("dt", term), rest.map((text) => h("dd", text)))));
	const ten = count(labels.length);
	const limitations = [
		`It knows ${ten} classes only. It ranks these ${ten} for any image.`,
		"Its probabilities are calibrated on images like its test set. On other photographs it is overconfident.",
		`It detects only some images of other things: it accepted ${percent(metrics.accepted.test)} of the test images, but also ` +
			`${others.map(([kind, share]) => `${percent(share)} of ${kind}`).join(", ")}.`,
		"A heat map shows where the last layer found evidence. It does not explain the cause.",
	];
	find("limitations").replaceChildren(...limitations.map((text) => h("li", text)));
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
			// Errors are rare: the factor and the square root make them visible.
			const strength = Math.sqrt(Math.min(1, (value / total) * (i === j ? 1 : 4)));
			return h("td", { class: `${i === j ? "right" : ""} ${strength > 0.6 ? "strong" : ""}`, "--strength": strength }, String(value));
		});
		return h("tr", heads("row", [labels[i]]), cells);
	});
	const table = h("table.confusion", h("thead", h("tr", heads("col", ["true class", ...labels]))), h("tbody", body));
	const title = "Confusion matrix";
	const scroll = h("div.scroll", { tabindex: 0, role: "region", "aria-label": title }, table);
	return figure(title, "Test images by true class (rows) and predicted class (columns).", scroll);
}

function reliabilityOf(bins) {
	const BINS = 15;
	const [size, low] = [280, 42];
	const at = (share) => low + share * (size - low - 8);
	const maximum = Math.max(...bins.map(({ pictures }) => pictures));
	const width = at(1 / BINS) - low;
	const bars = bins.map(({ confidence, accuracy, pictures }) => {
		const x = at(Math.min(BINS - 1, Math.floor(confidence * BINS)) / BINS) + 1;
		const height = at(accuracy) - low;
		return h("rect", { x, y: size - low - height, width: width - 2, height, opacity: 0.35 + 0.65 * Math.sqrt(pictures / maximum) });
	});
	const tick = (x, y, share) => h("text", { x, y, "text-anchor": "end" }, `${share * 100} %`);
	const ticks = [0, 0.5, 1].map((share) => [tick(at(share) + 4, size - 16, share), tick(low - 4, size - at(share) + 4, share)]);
	const line = (share) => h("line", { x1: low, y1: size - low, x2: at(1), y2: size - at(share) });
	const svg = h("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "Reliability diagram, as in the table below" }, bars, line(0), line(1), ticks);
	const rows = bins.map(({ confidence, accuracy, pictures }) =>
		h("tr", [percent(confidence), percent(accuracy), thousands(pictures)].map((value) => h("td", value))),
	);
	const head = h("thead", h("tr", heads("col", ["confidence", "accuracy", "images"])));
	const table = h("details", h("summary", "As a table"), h("table", head, h("tbody", rows)));
	return figure("Reliability", "Accuracy over confidence; on the line they are equal. Pale bars: few images.", svg, table);
}
