/** The heat map over the image, and the input of the network. */

import { find, h } from "./dom.js";
import { drawHeat, heatOf, placeOf } from "./heat.js";
import { sentence } from "./words.js";

export class Evidence {
	#explain;
	#job = null;
	#label = "";
	#view = -1; // the selected view, or -1 for all
	#shown = true;
	#divider = 0; // where the heat map begins, 0 to 1

	/** explain: function of a job and a label, resolves to the answer of /explain. */
	constructor(explain) {
		this.#explain = explain;
		find("heat").onclick = () => {
			this.#shown = !this.#shown;
			find("heat").setAttribute("aria-pressed", this.#shown);
			this.#show();
		};
	}

	/** Prepare for an image. */
	reset(job) {
		this.#job = job;
		this.#label = "";
		this.#view = -1;
		this.hide();
	}

	hide() {
		find("heat-bar").hidden = find("views").hidden = true;
		for (const layer of [...find("stage").children].slice(1)) layer.hidden = true;
	}

	/** Where the heat map begins, 0 (left) to 1 (right); 1 without a heat map. */
	get divider() {
		return this.#shown && !find("heat-bar").hidden ? this.#divider : 1;
	}

	/** The elements over the image: its paler copy, the heat map, the box of a view, and the divider. */
	layers() {
		const oninput = ({ target }) => {
			this.#divider = target.value / 100;
			this.#show();
		};
		const label = "Divider: the photo on its left, the evidence on its right";
		const range = { id: "divider", type: "range", min: 0, max: 100, value: this.#divider * 100, oninput, "aria-label": label, hidden: true };
		return [h("div.veil", { hidden: true }), h("canvas", { role: "img", hidden: true }), h("div.box", { hidden: true }), h("input", range)];
	}

	/** Draw what speaks for a class. */
	async show(label) {
		const job = this.#job;
		this.#label = label;
		for (const row of document.querySelectorAll(".ranking [data-label]")) row.setAttribute("aria-pressed", row.dataset.label === label);
		this.hide(); // the map of another class
		const current = () => job === this.#job && label === this.#label;
		try {
			const explained = await this.#explain(job, label);
			if (current()) this.#draw(explained);
		} catch (error) {
			if (!current()) return;
			find("heat-bar").hidden = false;
			find("where").textContent = sentence(`there is no map for ${label}: ${error.message}`);
		}
	}

	#show() {
		const [, veil, canvas, , divider] = find("stage").children;
		for (const layer of [veil, canvas, divider]) layer.hidden = !this.#shown;
		find("stage").style.setProperty("--divider", this.#divider);
	}

	/** Draw the map over the image, and the views below it. */
	#draw(explained) {
		const { views, label, method } = explained;
		const { answer } = this.#job;
		const { width, height } = answer.result;
		const one = views[this.#view];
		const heat = heatOf(one ? [one] : views, width, height);
		// Class-activation maps add up to the logits, so one scale serves all classes. Those of Grad-CAM do not.
		const first = method.startsWith("Grad-CAM") ? 0 : heatOf(answer.views, width, height).maximum;
		const [, , canvas, box] = find("stage").children;
		drawHeat(canvas, heat, first || heat.maximum);
		const where = heat.peak ? `the strongest evidence for ${label} is ${placeOf(heat.peak)}` : `there is no evidence for ${label}`;
		canvas.setAttribute("aria-label", `Heat map: ${where}`);
		find("where").textContent = sentence(where);
		find("where").title = method;
		const cells = `coarse: ${views[0].map[0].length} × ${views[0].map.length} cells per view`;
		find("scale").textContent = sentence(first ? `${cells}, on one scale for all classes` : `${cells}, scaled to its own maximum`);
		find("uncovered").hidden = heat.covered;
		find("heat-bar").hidden = find("views").hidden = false;
		this.#show();
		box.hidden = !one;
		const [left, top, right, bottom] = one?.box ?? [];
		const edges = { "--x": left / width, "--y": top / height, "--w": (right - left) / width, "--h": (bottom - top) / height };
		for (const [name, value] of Object.entries(edges)) box.style.setProperty(name, value);
		find("view-list").replaceChildren(...views.map((view, i) => this.#viewItem(explained, view, i)));
	}

	#viewItem(explained, { box, input }, i) {
		const { width, height } = this.#job.answer.result;
		const [left, top, right, bottom] = box;
		const pressed = this.#view === i;
		const onclick = () => {
			this.#view = pressed ? -1 : i;
			this.#draw(explained);
			find("view-list").querySelectorAll("button")[i].focus();
		};
		const whole = right - left > 0.99 * width && bottom - top > 0.99 * height;
		const closeUp = right - left < 0.6 * Math.min(width, height); // it has half the shorter side
		// Where it lies among all parts of its size, 0 to 1. The tolerance is for views that are centred to a pixel of the network.
		const place = [[left, right, width], [top, bottom, height]].map(([from, to, side]) => (from + side / 20) / (side - to + from + side / 10));
		const part = whole ? "the whole image" : `${closeUp ? "a close-up" : "the part"} ${placeOf(place)}`;
		const name = `View ${i + 1} of ${explained.views.length}: ${part}`;
		const image = h("img", { src: input, alt: "" });
		return h("li", h("button", { "aria-label": `${name}: show it in the image`, "aria-pressed": `${pressed}`, onclick }, image), h("p.note", name));
	}
}
