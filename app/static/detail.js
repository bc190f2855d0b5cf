/** The panel of one image: ranked classes, heat map, network input, timing. */

import { announce, find, h } from "./dom.js";
import { curlOf } from "./exports.js";
import { drawHeat, heatOf, placeOf } from "./heat.js";
import { capital, count, milliseconds, percent, sentence, summarize } from "./words.js";

const RANKED = 10; // classes that are shown, at most
const SLOW = 4000; // milliseconds until the elapsed time is shown

export class Detail {
	job = null;
	#actions;
	#service;
	#url = "";
	#heatShown = true;
	#label = ""; // the explained class
	#view = -1; // the selected view, or -1 for all

	/** actions: {remove, retry, shrink, cancel, explain}, functions of a job. */
	constructor(service, actions) {
		this.#service = service;
		this.#actions = actions;
		find("remove").onclick = () => actions.remove(this.job);
		find("heat").onclick = () => {
			this.#heatShown = !this.#heatShown;
			find("heat").setAttribute("aria-pressed", this.#heatShown);
			find("stage").querySelector("canvas").hidden = !this.#heatShown;
		};
		setInterval(() => this.#showElapsed(), 500);
	}

	/** Show a job, or hide the panel. */
	show(job) {
		if (job === this.job) return;
		URL.revokeObjectURL(this.#url);
		this.job = job;
		find("detail").hidden = !job;
		if (!job) return;
		this.#url = URL.createObjectURL(job.file);
		this.#view = -1;
		find("name").textContent = job.name;
		const image = h("img", { src: this.#url, alt: `The image ${job.name}` });
		image.onload = () => job.answer || this.#shape(image.naturalWidth, image.naturalHeight);
		image.onerror = () => image.replaceWith(h("p.note", "This browser cannot show the image."));
		this.#shape(4, 3);
		find("stage").replaceChildren(image, h("canvas", { role: "img", hidden: true }), h("div.box", { hidden: true }));
		this.update();
	}

	/** Show the job's state. */
	update() {
		const { answer, state } = this.job;
		const result = find("result");
		const focused = result.contains(document.activeElement);
		find("size").textContent = "";
		find("views").hidden = find("heat-bar").hidden = true;
		const parts = state === "done" ? this.#answer() : state === "failed" || state === "cancelled" ? this.#failure() : this.#pending();
		result.replaceChildren(...parts.filter(Boolean));
		if (focused) find("headline").focus();
		if (state !== "done") return;
		const { width, height } = answer.result;
		this.#shape(width, height);
		find("size").textContent = `${width} × ${height}`;
		if (answer.views) this.#explain(answer.label);
	}

	#shape(width, height) {
		find("stage").style.setProperty("--ratio", width / height);
		find("stage").classList.toggle("small", width < 128);
	}

	#heading(kind, title, text) {
		return [h("h2", { id: "headline", class: kind, tabindex: -1 }, title), h("p.lead", text)];
	}

	#pending() {
		const title = { queued: "Queued", waiting: "Waiting for the service", sending: "Classifying …" }[this.job.state];
		return [...this.#heading("pending", title, ""), h("div.progress", {}), h("button", { onclick: this.#actions.cancel }, "Cancel")];
	}

	#failure() {
		const { job } = this;
		const { title, detail, status, kind } = job.problem ?? { title: "Cancelled", detail: "it was not classified" };
		const shrinkable = (status === 413 || kind === "not-sent") && !job.shrunk;
		const shrink = shrinkable && h("button.primary", { onclick: () => this.#actions.shrink(job) }, "Send a smaller copy");
		return [
			...this.#heading("failed", title, sentence(detail)),
			h("p.buttons", shrink, h("button", { onclick: () => this.#actions.retry(job) }, "Try again")),
		];
	}

	#answer() {
		const { answer, shrunk, note } = this.job;
		const { kind, title, text } = summarize(answer.result, this.#service.card);
		const warnings = [...answer.result.warnings, ...(shrunk ? ["this is the result of a smaller copy"] : [])];
		return [
			...this.#heading(kind, title, text),
			note && h("p.note", note),
			warnings.length && h("ul.warnings", { "aria-label": "Warnings" }, warnings.map((each) => h("li", sentence(each)))),
			this.#ranking(answer),
			this.#inDistribution(answer.result.in_distribution),
			this.#timing(answer),
			this.#curl(answer),
		];
	}

	#ranking({ result, views }) {
		const rows = result.top_k.slice(0, RANKED).map(({ label, probability }) => {
			const cells = [h("span", label), h("span.track", h("i", { "--share": probability })), h("span.share", percent(probability))];
			if (!views) return h("li.row", cells);
			const name = `${label}, ${percent(probability)}: show where the evidence is`;
			return h("li", h("button.row", { "aria-label": name, "data-label": label, onclick: () => this.#explain(label) }, cells));
		});
		const hint = views && h("p.note", "Choose a class to see its heat map.");
		const more = result.top_k.length > RANKED && h("p.note", `The ${count(RANKED)} most probable of ${result.top_k.length} classes.`);
		return h("div", h("ol.ranking", { "aria-label": "Classes by probability" }, rows), more, hint);
	}

	#inDistribution(share) {
		const { accepted, uncertain } = this.#service.card.out_of_distribution.thresholds;
		return h(
			"div.part",
			h("p", "Familiarity ", h("b", percent(share))),
			h("div", { class: "track marked", "--threshold": accepted }, h("i", { "--share": share })),
			h("p.note", `The share of held-out images with a lower score. Below ${percent(accepted)} it is uncertain whether the image shows a class, below ${percent(uncertain)} it counts as none.`),
		);
	}

	#timing({ stages, milliseconds: elapsed }) {
		const sum = stages.reduce((total, [, value]) => total + value, 0);
		const parts = stages.map(([name, value], i) => h("div", { class: `stage-${i}` }, h("dt", name), h("dd", milliseconds(value))));
		return h(
			"div.part timing",
			h("p", "Time in the service ", h("b", milliseconds(sum)), `, ${milliseconds(elapsed)} with the network`),
			h("div.stack", stages.map(([, value], i) => h("i", { class: `stage-${i}`, "--share": value / sum }))),
			h("dl", parts),
		);
	}

	#curl({ views }) {
		const { card, model } = this.#service;
		const path = `${views ? "explain" : "predict"}?top_k=${card.labels.length}${model && `&model=${model}`}`;
		const command = curlOf(this.job.name, path, this.#service.hasKey);
		const code = h("pre", { id: "command", hidden: true }, command);
		const copy = async ({ target }) => {
			code.hidden = false;
			try {
				await navigator.clipboard.writeText(command);
				target.textContent = "Copied";
				announce("Copied. Run it in the folder of the image.");
			} catch {
				getSelection().selectAllChildren(code); // the clipboard requires HTTPS
				announce("Selected. Copy it with the keyboard.");
			}
		};
		return h("div.curl", h("button", { id: "copy", onclick: copy }, "Copy as curl"), code);
	}

	async #explain(label) {
		const { job } = this;
		this.#label = label;
		const rows = [...find("result").querySelectorAll("[data-label]")];
		for (const row of rows) row.setAttribute("aria-pressed", row.dataset.label === label);
		const current = () => job === this.job && label === this.#label;
		try {
			const explained = await this.#actions.explain(job, label);
			if (current()) this.#draw(explained);
		} catch (error) {
			if (current()) find("where").textContent = sentence(`there is no map for ${label}: ${error.message}`);
		}
	}

	/** Draw the map over the image, and the views below it. */
	#draw(explained) {
		const { views, label, method } = explained;
		const { width, height } = this.job.answer.result;
		const one = views[this.#view];
		const heat = heatOf(one ? [one] : views, width, height);
		const [, canvas, box] = find("stage").children;
		drawHeat(canvas, heat);
		const where = heat.peak ? `the strongest evidence for ${label} is ${placeOf(heat.peak)}` : `there is no evidence for ${label}`;
		canvas.setAttribute("aria-label", `Heat map: ${where}`);
		canvas.hidden = !this.#heatShown;
		find("where").textContent = sentence(where);
		find("where").title = method;
		find("heat-bar").hidden = find("views").hidden = false;
		box.hidden = !one;
		const [left, top, right, bottom] = one?.box ?? [];
		const edges = { "--x": left / width, "--y": top / height, "--w": (right - left) / width, "--h": (bottom - top) / height };
		for (const [name, value] of Object.entries(edges)) box.style.setProperty(name, value);
		const buttons = views.map(({ input }, i) => {
			const onclick = () => {
				this.#view = one === views[i] ? -1 : i;
				this.#draw(explained);
				find("view-list").querySelectorAll("button")[i].focus();
			};
			const name = `View ${i + 1} of ${views.length}: show its part of the image`;
			return h("li", h("button", { "aria-label": name, "aria-pressed": `${one === views[i]}`, onclick }, h("img", { src: input, alt: "" })));
		});
		find("view-list").replaceChildren(...buttons);
	}

	#showElapsed() {
		const { state, sentAt } = this.job ?? {};
		const since = Date.now() - sentAt;
		if (state === "sending" && since > SLOW) {
			find("result").querySelector(".lead").textContent = `No response after ${Math.round(since / 1000)} s.`;
		}
	}
}
