/** The results as tiles: sorting, filtering, selection. */

import { find, h } from "./dom.js";
import { count, percent, summarize } from "./words.js";

const first = (job) => job.answer?.result.top_k[0];

/** Sort by an optional value; jobs without it come last. */
const by = (value, compare) => (a, b) => {
	const [x, y] = [value(a), value(b)];
	return x === undefined || y === undefined ? (x === undefined) - (y === undefined) : compare(x, y);
};
const ORDERS = {
	added: () => 0,
	label: by((job) => first(job)?.label, (x, y) => x.localeCompare(y)),
	confidence: by((job) => first(job)?.probability, (x, y) => y - x),
	familiarity: by((job) => job.answer?.result.in_distribution, (x, y) => y - x),
};

export class Gallery {
	#queue;
	#service;
	#select;
	#tiles = new Map();
	#selected = null;
	#timer = 0;

	/** select: called with the job of a clicked tile. */
	constructor(queue, service, select) {
		this.#queue = queue;
		this.#service = service;
		this.#select = select;
		find("sort").onchange = find("filter").onchange = () => this.#arrange();
		queue.addEventListener("changed", ({ detail }) => {
			if (!queue.all.includes(detail)) return;
			this.#fill(detail);
			// Collects the changes of 50 ms.
			this.#timer ||= setTimeout(() => this.#arrange(), 50);
		});
		queue.addEventListener("thumb", ({ detail }) => this.#tiles.has(detail) && this.#fill(detail));
		queue.addEventListener("removed", ({ detail }) => {
			for (const job of detail) this.#tiles.delete(job);
			this.#arrange();
		});
	}

	/** The filtered jobs in display order. */
	get shown() {
		const wanted = find("filter").value;
		const shown = this.#queue.all.filter((job) => wanted === "all" || this.#kind(job) === wanted);
		return shown.sort(ORDERS[find("sort").value]);
	}

	/** Mark the tile of the selected job. */
	mark(job) {
		this.#tiles.get(this.#selected)?.firstChild.removeAttribute("aria-current");
		this.#selected = job;
		this.#tiles.get(job)?.firstChild.setAttribute("aria-current", "true");
	}

	#kind(job) {
		if (job.state === "done") return summarize(job.answer.result, this.#service.card).kind;
		return job.settled ? "failed" : "pending";
	}

	#fill(job) {
		if (!this.#tiles.has(job)) this.#tiles.set(job, h("li", h("button", { onclick: () => this.#select(job) })));
		const kind = this.#kind(job);
		const { name, thumb, state, problem } = job;
		const best = first(job);
		const text = {
			pending: state,
			failed: problem?.title ?? state,
			confident: best?.label,
			uncertain: `${best?.label}?`,
			other: `none of ${count(this.#service.card?.labels.length)}`,
		}[kind];
		const share = kind === "confident" || kind === "uncertain" ? percent(best.probability) : "";
		const button = this.#tiles.get(job).firstChild;
		button.className = `tile ${kind}`;
		button.setAttribute("aria-label", `${name}: ${text} ${share}`);
		button.title = name;
		const preview = thumb
			? h("img", { src: thumb, alt: "", loading: "lazy" })
			: h("span.no-thumb", thumb === "" && name.split(".").pop().slice(0, 5));
		button.replaceChildren(preview, h("span.caption", h("b", text), h("span", share)));
	}

	#arrange() {
		this.#timer = 0;
		const { all } = this.#queue;
		const { shown } = this;
		find("gallery").hidden = all.length < 2;
		document.body.classList.toggle("filled", all.length > 0);
		const list = find("tiles");
		const wanted = shown.map((job) => this.#tiles.get(job));
		if (wanted.length !== list.children.length || wanted.some((tile, i) => list.children[i] !== tile)) {
			const focused = document.activeElement;
			list.replaceChildren(...wanted);
			if (list.contains(focused)) focused.focus();
		}
		const settled = all.filter((job) => job.settled).length;
		const failed = all.filter((job) => this.#kind(job) === "failed").length;
		find("count").textContent =
			(settled < all.length ? `${settled} of ${all.length} done` : `${all.length} images`) +
			(failed ? `, ${failed} failed` : "") +
			(shown.length < all.length ? `; ${shown.length} shown` : "");
	}
}
