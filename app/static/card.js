/** The section about the model, from GET /model. */

import { find, h } from "./dom.js";
import { count, percent, percentInWords, plural, sentence, thousands } from "./words.js";

const FEW = 200; // held-out images, as FEW_IMAGES in model/training/calibrate.py
const NAMED = 24; // classes that are named above the images, at most

export function showCard(card) {
	const { name, version, labels, metrics, input, openvino } = card;
	find("chip").replaceChildren(name, h("span", version));
	find("number").textContent = count(labels.length);
	const more = labels.length - NAMED;
	const named = more > 1 ? [...labels.slice(0, NAMED), `and ${thousands(more)} others`] : labels;
	find("classes").replaceChildren(...named.map((text) => h("li", text)));
	showExamples(labels);
	const { accepted, photos } = metrics;
	const others = Object.entries(accepted).filter(([kind]) => kind !== "test");
	const quantised = openvino ? `; ${percent(openvino.top1)} in 8 bits, on CPUs` : "";
	const ten = count(labels.length);
	const facts = [
		["Accuracy", percent(metrics.top1), `of ${thousands(metrics.pictures)} test images${quantised}`],
		photos && ["Accuracy on photos", percent(photos.top1), `of ${thousands(photos.images)} photos of the ${ten} classes, from other sources`],
		["Calibration error", percent(metrics.ece), "mean difference between confidence and accuracy"],
		["Input", `${input.crop} × ${input.crop}`, "pixels of each view, for an image of any size"],
	].filter(Boolean);
	find("facts").replaceChildren(...facts.map(([term, ...rest]) => h("div", h("dt", term), rest.map((text) => h("dd", text)))));
	const right = photos ? `${percent(photos.top1)} of photos` : `${percent(metrics.top1)} of its test images`;
	const wrong = photos ? ` It takes ${percentInWords(photos.others_accepted)} of photos of other things for one of them.` : "";
	const { pictures: heldOut } = card.calibration;
	find("few").hidden = heldOut >= FEW;
	find("few").textContent = heldOut
		? `Only ${plural(heldOut, "image")} ${heldOut === 1 ? "was" : "were"} held out for the calibration, so probabilities and verdicts are rough.`
		: "No images were held out for a calibration, so probabilities and verdicts are rough.";
	find("gist").textContent = `It knows ${ten} things. It is right on ${right} of them.${wrong}`;
	const shares = others.map(([kind, share]) => `${percentInWords(share)} of ${kind}`);
	if (photos) shares.unshift(`${percentInWords(photos.others_accepted)} of ${thousands(photos.others)} photos of other things`);
	const limitations = [
		`It knows ${ten} classes only. It ranks these ${ten} for any image.`,
		"Its probabilities are calibrated on images like its test set. On other photos it is less often right than it is sure.",
		`It detects only some images of other things. It accepted ${percentInWords(accepted.test)} of the test images, but also ${shares.join(", ")}.`,
		"A heat map shows where the network found evidence. It does not explain the cause.",
	];
	find("limitations").replaceChildren(...limitations.map((text) => h("li", text)));
	const { confusion, mistakes = [], reliability } = metrics;
	find("figures").replaceChildren(...[confusion && confusionOf(labels, confusion, mistakes), reliability && reliabilityOf(reliability)].filter(Boolean));
	find("model").hidden = false;
}

/** Show the examples of the classes, and those of other things if there are any of the classes. */
function showExamples(labels) {
	const known = labels.map((label) => label.toLowerCase());
	const unknown = ({ dataset }) => !known.includes(dataset.label);
	for (const each of find("examples").children) each.hidden = unknown(each);
	for (const each of find("others").children) each.hidden = !unknown(each);
	find("samples").hidden = [...find("examples").children].every(unknown);
}

const figure = (title, text, ...parts) => h("figure", h("figcaption", h("h3", title), h("p.note", text)), parts);
const heads = (scope, titles) => titles.map((title) => h("th", { scope }, title));

function confusionOf(labels, rows, mistakes) {
	const chosen = h("div", { id: "mistakes", "aria-live": "polite" }, h("p.note", "Choose a number to see its mistakes."));
	const cell = (value, i, j, total) => {
		const [label, predicted] = [labels[i], labels[j]];
		const named = mistakes.filter((each) => each.label === label && each.predicted === predicted);
		const onclick = () => {
			const lines = named.map(({ file, image, probability }) => h("li", `${file ?? `Image ${image}`}, ${percentInWords(probability)} sure`));
			const which = named.length ? `The surest mistakes of this model include ${named.length === 1 ? "this one" : "these"}:` : "None of them is among the surest mistakes of this model.";
			chosen.replaceChildren(h("p", h("b", sentence(`${label} taken for ${predicted}: ${thousands(value)} of ${plural(total, "image")}`)), ` ${which}`), h("ul", lines));
		};
		// Those without names are not reached by the Tab key: the table has their numbers.
		return h("button", { onclick, tabindex: named.length ? 0 : -1, "aria-label": `${value}: ${label} taken for ${predicted}` }, String(value));
	};
	const body = rows.map((row, i) => {
		const total = row.reduce((sum, value) => sum + value, 0) || 1;
		const cells = row.map((value, j) => {
			// Errors are rare: the factor and the square root make them visible.
			const strength = Math.sqrt(Math.min(1, (value / total) * (i === j ? 1 : 4)));
			return h("td", { class: i === j && "right", "--strength": strength }, value && i !== j ? cell(value, i, j, total) : String(value));
		});
		return h("tr", heads("row", [labels[i]]), cells);
	});
	const table = h("table.confusion", h("thead", h("tr", heads("col", ["true class", ...labels]))), h("tbody", body));
	const title = "What it mixes up";
	const scroll = h("div.scroll", { tabindex: 0, role: "region", "aria-label": title }, table);
	const hint = h("p.note scroll-hint", "Scroll the table sideways to see all classes.");
	return figure(title, "Confusion matrix: number of test images by true class (rows) and predicted class (columns).", hint, scroll, chosen);
}

function reliabilityOf(bins) {
	const BINS = 15;
	const [size, low] = [290, 56];
	const at = (share) => low + share * (size - low - 8);
	const maximum = Math.max(...bins.map(({ pictures }) => pictures));
	const width = at(1 / BINS) - low;
	const bars = bins.map(({ confidence, accuracy, pictures }) => {
		const x = at(Math.min(BINS - 1, Math.floor(confidence * BINS)) / BINS) + 1;
		const height = at(accuracy) - low;
		return h("rect", { x, y: size - low - height, width: width - 2, height, opacity: 0.35 + 0.65 * Math.sqrt(pictures / maximum) });
	});
	const tick = (x, y, share, anchor) => h("text", { x, y, "text-anchor": anchor }, `${share * 100}%`);
	const ticks = [0, 0.5, 1].map((share) => [
		tick(at(share) - share * 10, size - low + 16, share, "middle"),
		tick(low - 6, size - at(share) + 4, share, "end"),
	]);
	const middle = at(0.5);
	const axes = [
		h("text", { x: middle, y: size - 14, "text-anchor": "middle" }, "Confidence"),
		h("text", { x: 14, y: size - middle, "text-anchor": "middle", transform: `rotate(-90 14 ${size - middle})` }, "Accuracy"),
	];
	const line = (share) => h("line", { x1: low, y1: size - low, x2: at(1), y2: size - at(share) });
	const svg = h("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": "Reliability diagram, as in the table below" }, bars, line(0), line(1), ticks, axes);
	const rows = bins.map(({ confidence, accuracy, pictures }) =>
		h("tr", [percent(confidence), percent(accuracy), thousands(pictures)].map((value) => h("td", value))),
	);
	const head = h("thead", h("tr", heads("col", ["Confidence", "Accuracy", "Images"])));
	const table = h("details", h("summary", "As a table"), h("table", head, h("tbody", rows)));
	return figure("Is its confidence justified?", "Accuracy by confidence on the test images. On the line they are equal. Pale bars have few images.", svg, table);
}
