/** The panel of one image: verdict, ranked classes, timing, code. The heat map is in evidence.js. */

import { announce, find, h, notify } from "./dom.js";
import { Evidence } from "./evidence.js";
import { annotated, codeOf, save } from "./exports.js";
import { NONE, capital, count, labelOf, milliseconds, percent, percentInWords, problemText, sentence, size, summarize, typicality, warningText } from "./words.js";

const FIRST = 3; // classes that are shown at first
const RANKED = 10; // classes that are shown, at most
const NAMED = 12; // classes that are all offered as the right one, at most
const ENDING = 8; // characters at the end of a long name that stay visible
const SLOW = 4000; // milliseconds until the elapsed time is shown

export class Detail {
	job = null;
	#actions;
	#service;
	#evidence;
	#url = "";
	#language = "JSON";
	#open = new Set(); // the folded parts that are open

	/** actions: {remove, retry, copy, original, cancel}, functions of a job, and {explain, correct}, of a job and a label. */
	constructor(service, actions) {
		this.#service = service;
		this.#actions = actions;
		this.#evidence = new Evidence(actions.explain);
		find("remove").onclick = () => actions.remove(this.job);
		find("save").onclick = () => this.#save();
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
		this.#evidence.reset(job);
		find("name").replaceChildren(h("span", job.name.slice(0, -ENDING)), h("span", job.name.slice(-ENDING)));
		const image = h("img", { src: this.#url, alt: `The image ${job.name}` });
		image.onload = () => job !== this.job || job.answer || this.#shape(image.naturalWidth, image.naturalHeight);
		image.onerror = () => image.replaceWith(h("p.note", "This browser cannot show the image."));
		this.#shape(4, 3);
		find("stage").replaceChildren(image, ...this.#evidence.layers());
		this.update();
	}

	/** Show the job's state. */
	update() {
		const { answer, state } = this.job;
		const [verdict, result] = [find("verdict"), find("result")];
		const focused = verdict.contains(document.activeElement) || result.contains(document.activeElement);
		find("size").textContent = "";
		find("save").hidden = state !== "done";
		this.#evidence.hide();
		const parts = state === "done" ? this.#answer() : state === "failed" || state === "cancelled" ? this.#failure() : this.#pending();
		verdict.replaceChildren(...parts.verdict);
		result.replaceChildren(...parts.result.filter(Boolean));
		if (focused) find("headline").focus();
		if (state !== "done") return;
		const { width, height } = this.job.copy ?? answer.result;
		this.#shape(width, height);
		find("size").textContent = `${width} × ${height}`;
		if (answer.views) this.#evidence.show(answer.label);
	}

	#shape(width, height) {
		find("stage").style.setProperty("--ratio", width / height);
		find("stage").classList.toggle("small", width < 128);
	}

	#heading(kind, title, text) {
		return [h("h2", { id: "headline", class: kind, tabindex: -1 }, title), h("p.lead", text)];
	}

	/** Show how much of the file was sent. */
	progress() {
		const { loaded, unsent, body } = this.job;
		if (!find("upload")) this.update();
		const sending = loaded > 0 && unsent > 0;
		find("upload").hidden = !sending;
		find("upload").value = loaded / body.size;
		find("headline").textContent = sending ? "Uploading …" : "Classifying …";
		find("verdict").querySelector(".lead").textContent = sending ? `${size(loaded)} of ${size(body.size)}` : "";
	}

	#pending() {
		const title = { queued: "Queued", waiting: "Waiting for the service", sending: "Classifying …" }[this.job.state];
		const cancel = h("button", { onclick: this.#actions.cancel }, "Cancel");
		const upload = h("progress", { id: "upload", max: 1, value: 0, "aria-label": "Upload", hidden: true });
		return { verdict: [...this.#heading("pending", title, ""), upload, h("div.progress", {})], result: [cancel] };
	}

	#failure() {
		const { job } = this;
		const problem = job.problem ?? { title: "Cancelled", detail: "it was not classified", status: 0 };
		const { status, kind } = problem;
		// A file that is refused for what it is will be refused again.
		const temporary = (status < 400 || status === 408 || status >= 500) && kind !== "unreadable-here";
		return {
			verdict: this.#heading("failed", problem.title, problemText(problem)),
			result: [
				h(
					"p.buttons",
					!job.copy &&
						(status === 413 || kind === "not-sent") &&
						h("button.primary", { onclick: () => this.#actions.copy(job) }, "Send a smaller copy"),
					temporary && h("button", { onclick: () => this.#actions.retry(job) }, "Try again"),
				),
			],
		};
	}

	#answer() {
		const { answer, note } = this.job;
		const { kind, title, text } = summarize(answer.result, this.#service.card);
		const { warnings } = answer.result;
		return {
			verdict: this.#heading(kind, title, text),
			result: [
				note && h("p.note", note),
				warnings.length && h("ul.warnings", { "aria-label": "Warnings" }, warnings.map((each) => h("li", warningText(each, this.#service.card)))),
				this.#ranking(answer),
				h("div", { id: "question", class: "part" }, this.#question(answer)),
				this.#copied(this.job),
				this.#typical(answer.result),
				this.#timing(answer),
				this.#code(),
			],
		};
	}

	#ranking({ result, views }) {
		const rows = result.top_k.slice(0, RANKED).map(({ label, probability }) => {
			const cells = [h("span", label), h("span.track", h("i", { "--share": probability })), h("span.share", percent(probability))];
			if (!views) return h("li.row", cells);
			const name = `${label}, ${percent(probability)}: show where the evidence is`;
			const onclick = () => this.#evidence.show(label);
			return h("li", h("button.row", { "aria-label": name, "data-label": label, onclick }, cells));
		});
		const hint = views && h("p.note", "Choose a class to see its heat map.");
		const most = result.top_k.length > RANKED && h("p.note", `The ${count(RANKED)} most probable of ${result.top_k.length} classes.`);
		const rest = rows.length > FIRST && [h("ol", { "aria-label": "Other classes", start: FIRST + 1 }, rows.slice(FIRST)), most];
		return h(
			"div.ranking",
			h("ol", { "aria-label": "Classes by probability" }, rows.slice(0, FIRST)),
			rest && this.#folded("classes", `Show all ${count(rows.length)}`, rest),
			hint,
		);
	}

	/** Show the visitor's label. */
	labelled() {
		const question = find("question");
		if (!question) return;
		const { activeElement } = document;
		const focused = question.contains(activeElement);
		question.replaceChildren(...this.#question(this.job.answer).filter(Boolean));
		const buttons = [...question.querySelectorAll("button")];
		if (focused) (buttons.find(({ dataset }) => dataset.label === activeElement.dataset.label) ?? buttons[0]).focus();
	}

	/** "Was this right?", with the classes to choose from. */
	#question({ result }) {
		const { job } = this;
		const { labels } = this.#service.card;
		const given = labelOf(result, this.#service.card);
		const many = labels.length > NAMED;
		const others = many ? result.top_k.slice(0, RANKED).map(({ label }) => label) : labels;
		const chips = [...new Set([given, ...others, ...(job.right ? [job.right] : []), NONE])].map((label) => {
			const onclick = () => this.#correct(job, label);
			return h("button", { onclick, "aria-pressed": `${label === job.right}`, "data-label": label }, label === given ? `Yes, ${label}` : label);
		});
		const onchange = ({ target }) => this.#correct(job, target.value);
		const more = many && h("select", { onchange, "aria-label": "Another class" }, [null, ...labels].map((label) => h("option", { value: label ?? "", disabled: !label, selected: !label }, label ?? "another class …")));
		const where = job.stored ? "The service has stored it." : this.#service.storesLabels ? "" : "It is counted on this page, and in the CSV.";
		return [
			h("h3", "Was this right?"),
			h("div.chips", { role: "group", "aria-label": "Was this right?" }, chips, more),
			job.right && h("p.note", `${sentence(job.right)} ${where} `, h("button", { id: "unlabel", onclick: () => this.#correct(job, null) }, "Undo")),
		];
	}

	async #correct(job, label) {
		announce(label ? sentence(`the right label is ${label}`) : "The label is removed.");
		try {
			await this.#actions.correct(job, label);
		} catch (problem) {
			notify(sentence(`the label of ${job.name} was not stored: ${problem.message}`));
		}
	}

	/** A part that is opened by its title, and stays open for the next image. */
	#folded(name, title, ...parts) {
		const ontoggle = ({ target }) => this.#open[target.open ? "add" : "delete"](name);
		return h("details", { class: `folded ${name}`, ontoggle, open: this.#open.has(name) }, h("summary", title), parts);
	}

	#copied({ copy, file }) {
		if (!copy) return null;
		const onclick = () => this.#actions.original(this.job);
		return h(
			"div.part",
			h("p.note", `Sent as a JPEG copy: ${size(copy.size)} instead of ${size(file.size)}.`),
			h("button", { onclick }, "Send the original"),
		);
	}

	#typical({ in_distribution: share }) {
		const { labels, out_of_distribution } = this.#service.card;
		const { accepted, uncertain } = out_of_distribution.thresholds;
		return this.#folded(
			"part",
			["Typical of its class: ", h("b", typicality(share, out_of_distribution.thresholds))],
			h("p", h("b", capital(percentInWords(share))), " of known images are no more typical of their class than this one."),
			h("div", { class: "track marked", "--threshold": accepted }, h("i", { "--share": share })),
			h("p.note", `Below ${percent(accepted)}, at the mark, the image is not a typical one. Below ${percent(uncertain)} it is probably none of the ${count(labels.length)}.`),
		);
	}

	#timing({ stages, milliseconds: elapsed }) {
		const sum = stages.reduce((total, [, value]) => total + value, 0);
		const parts = stages.map(([name, value], i) => h("div", { class: `stage-${i}` }, h("dt", name), h("dd", milliseconds(value))));
		return this.#folded(
			"part timing",
			["Time: ", h("b", milliseconds(elapsed))],
			h("p.note", `${milliseconds(sum)} in the service, the rest on the network.`),
			h("div.stack", stages.map(([, value], i) => h("i", { class: `stage-${i}`, "--share": value / sum }))),
			h("dl", parts),
		);
	}

	#code() {
		const { card, model, hasKey } = this.#service;
		const path = `predict?top_k=${card.labels.length}${model && `&model=${model}`}`;
		const texts = codeOf(this.job, path, hasKey);
		const code = h("pre", { id: "command", tabindex: 0, "aria-label": "Code" });
		const buttons = texts.map(([name, text]) => {
			const onclick = () => {
				this.#language = name;
				code.textContent = text;
				for (const each of buttons) each.setAttribute("aria-pressed", each === button);
			};
			const button = h("button", { onclick }, name);
			return button;
		});
		buttons[texts.findIndex(([name]) => name === this.#language)].onclick();
		const copy = async ({ target }) => {
			try {
				await navigator.clipboard.writeText(code.textContent);
				target.textContent = "Copied";
				announce(this.#language === "JSON" ? "Copied." : `Copied the ${this.#language} code. Run it in the folder of the image.`);
			} catch {
				getSelection().selectAllChildren(code); // the clipboard requires HTTPS
				announce("Selected. Copy it with the keyboard.");
			}
		};
		const row = h("div.buttons", buttons, h("button", { id: "copy", onclick: copy }, "Copy"));
		return this.#folded("part code", "As JSON, or as code", row, code);
	}

	async #save() {
		const { answer, name } = this.job;
		const [image, , canvas] = find("stage").children;
		if (!image.naturalWidth) return notify("This browser cannot show the image.");
		const { title } = summarize(answer.result, this.#service.card);
		save(await annotated(image, canvas, this.#evidence.divider, title, answer), `${name.replace(/\.\w+$/, "")}-tenfold.png`);
	}

	#showElapsed() {
		const { state, sentAt, loaded, unsent } = this.job ?? {};
		const since = Date.now() - sentAt;
		if (state === "sending" && !(loaded && unsent) && since > SLOW) {
			find("verdict").querySelector(".lead").textContent = `No response after ${Math.round(since / 1000)} s.`;
		}
	}
}
