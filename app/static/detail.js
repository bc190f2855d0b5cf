/** The panel of one picture: what it is, where the network looked, what it saw, and how long that took. */

import { announce, find, h } from "./dom.js";
import { curlOf } from "./exports.js";
import { drawHeat, heatOf, placeOf } from "./heat.js";
import { capital, milliseconds, percent, sentence, verdict } from "./words.js";

const SLOW = 4000; // milliseconds after which a wait is spoken of

export class Detail {
	picture = null;
	#actions;
	#service;
	#card = null;
	#url = "";
	#heatShown = true;
	#label = ""; // that is explained
	#view = -1; // that is looked at alone, or -1 for all

	/** actions: {remove, retry, shrink, cancel, explain} on pictures. */
	constructor(service, actions) {
		this.#service = service;
		this.#actions = actions;
		service.card().then((card) => (this.#card = card));
		find("remove").onclick = () => actions.remove(this.picture);
		find("heat").onclick = () => {
			this.#heatShown = !this.#heatShown;
			find("heat").setAttribute("aria-pressed", this.#heatShown);
			find("stage").querySelector("canvas").hidden = !this.#heatShown;
		};
		setInterval(() => this.#tellIfSlow(), 500);
	}

	/** Show a picture, or nothing. */
	show(picture) {
		if (picture === this.picture) return;
		URL.revokeObjectURL(this.#url);
		this.picture = picture;
		find("detail").hidden = !picture;
		if (!picture) return;
		this.#url = URL.createObjectURL(picture.file);
		this.#view = -1;
		find("name").textContent = picture.name;
		const image = h("img", { src: this.#url, alt: `The picture ${picture.name}` });
		image.onload = () => picture.answer || this.#shape(image.naturalWidth, image.naturalHeight);
		image.onerror = () => image.replaceWith(h("p.note", "This browser cannot show the picture."));
		this.#shape(4, 3);
		find("stage").replaceChildren(image, h("canvas", { role: "img", hidden: true }), h("div.box", { hidden: true }));
		this.update();
	}

	/** Tell of the picture's state. */
	update() {
		const { answer, state } = this.picture;
		const say = find("say");
		const focused = say.contains(document.activeElement);
		find("size").textContent = "";
		find("views").hidden = find("heat-bar").hidden = true;
		const parts = state === "done" ? this.#answer() : state === "failed" || state === "cancelled" ? this.#failure() : this.#pending();
		say.replaceChildren(...parts.filter(Boolean));
		if (focused) find("verdict").focus();
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
		return [h("h2", { id: "verdict", class: kind, tabindex: -1 }, title), h("p.lead", text)];
	}

	#pending() {
		const title = { queued: "In the queue", waiting: "Waiting for the service", sending: "Looking …" }[this.picture.state];
		return [...this.#heading("pending", title, ""), h("div.progress", {}), h("button", { onclick: this.#actions.cancel }, "Cancel")];
	}

	#failure() {
		const { picture } = this;
		const { title, detail, status, kind } = picture.problem ?? { title: "Cancelled", detail: "It was not classified" };
		const shrinkable = (status === 413 || kind === "not-sent") && !picture.shrunk;
		const shrink = shrinkable && h("button.primary", { onclick: () => this.#actions.shrink(picture) }, "Send a smaller copy");
		return [
			...this.#heading("failed", title, sentence(detail)),
			h("p.buttons", shrink, h("button", { onclick: () => this.#actions.retry(picture) }, "Try again")),
		];
	}

	#answer() {
		const { answer, shrunk, note } = this.picture;
		const { kind, title, text } = verdict(answer.result, this.#card);
		const warnings = [...answer.result.warnings, ...(shrunk ? ["this is the answer for a smaller copy"] : [])];
		return [
			...this.#heading(kind, title, text),
			note && h("p.note", note),
			warnings.length && h("ul.warnings", { "aria-label": "Warnings" }, warnings.map((each) => h("li", sentence(each)))),
			this.#ranking(answer),
			this.#familiar(answer.result.in_distribution),
			this.#timing(answer),
			this.#curl(answer),
		];
	}

	#ranking({ result, views }) {
		const rows = result.top_k.map(({ label, probability }) => {
			const cells = [h("span", label), h("span.track", h("i", { "--share": probability })), h("span.share", percent(probability))];
			if (!views) return h("li.row", cells);
			const name = `${label}, ${percent(probability)}: show what speaks for it`;
			return h("li", h("button.row", { "aria-label": name, "data-label": label, onclick: () => this.#explain(label) }, cells));
		});
		const hint = views && h("p.note", "Choose a class to see what in the picture speaks for it.");
		return h("div", h("ol.ranking", { "aria-label": "Classes, likeliest first" }, rows), hint);
	}

	#familiar(share) {
		const { threshold } = this.#card.out_of_distribution;
		return h(
			"div.part",
			h("p", "Familiarity ", h("b", percent(share))),
			h("div", { class: "track least", "--least": threshold }, h("i", { "--share": share })),
			h("p.note", `So many known pictures look no more like their class than this one. Below ${percent(threshold)} it counts as none of the classes.`),
		);
	}

	#timing({ stages, milliseconds: whole }) {
		const sum = stages.reduce((total, [, value]) => total + value, 0);
		const parts = stages.map(([name, value], i) => h("div", { class: `stage-${i}` }, h("dt", name), h("dd", milliseconds(value))));
		return h(
			"div.part timing",
			h("p", "Time in the service ", h("b", milliseconds(sum)), `, ${milliseconds(whole)} with the way there and back`),
			h("div.stack", stages.map(([, value], i) => h("i", { class: `stage-${i}`, "--share": value / sum }))),
			h("dl", parts),
		);
	}

	#curl({ views }) {
		const path = `${views ? "explain" : "predict"}?top_k=${this.#card.labels.length}`;
		const command = curlOf(this.picture.name, path, this.#service.hasKey);
		const code = h("pre", { id: "command", hidden: true }, command);
		const copy = async ({ target }) => {
			code.hidden = false;
			try {
				await navigator.clipboard.writeText(command);
				target.textContent = "Copied";
				announce("Copied. Run it in the folder of the picture.");
			} catch {
				getSelection().selectAllChildren(code); // without https there is no clipboard
				announce("Selected: copy it with the keyboard.");
			}
		};
		return h("div.curl", h("button", { id: "copy", onclick: copy }, "Copy as curl"), code);
	}

	async #explain(label) {
		const { picture } = this;
		this.#label = label;
		const rows = [...find("say").querySelectorAll("[data-label]")];
		for (const row of rows) row.setAttribute("aria-pressed", row.dataset.label === label);
		const current = () => picture === this.picture && label === this.#label;
		try {
			const explained = await this.#actions.explain(picture, label);
			if (current()) this.#look(explained);
		} catch (error) {
			if (current()) find("where").textContent = sentence(`there is no map for ${label}: ${error.message}`);
		}
	}

	/** Draw the map over the picture, and the views below it. */
	#look(explained) {
		const { views, label, method } = explained;
		const { width, height } = this.picture.answer.result;
		const one = views[this.#view];
		const heat = heatOf(one ? [one] : views, width, height);
		const [, canvas, box] = find("stage").children;
		drawHeat(canvas, heat);
		const where = heat.peak ? `what speaks most for ${label} is ${placeOf(heat.peak)}` : `nothing in it speaks for ${label}`;
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
				this.#look(explained);
				find("view-list").querySelectorAll("button")[i].focus();
			};
			const name = `View ${i + 1} of ${views.length}: show its part of the picture`;
			return h("li", h("button", { "aria-label": name, "aria-pressed": `${one === views[i]}`, onclick }, h("img", { src: input, alt: "" })));
		});
		find("view-list").replaceChildren(...buttons);
	}

	#tellIfSlow() {
		const { state, sentAt } = this.picture ?? {};
		const since = Date.now() - sentAt;
		if (state === "sending" && since > SLOW) {
			find("say").querySelector(".lead").textContent = `Still waiting for the answer: ${Math.round(since / 1000)} s.`;
		}
	}
}
