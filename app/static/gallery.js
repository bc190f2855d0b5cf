/** The results as tiles, in one row or all of them: sorting, filtering, selection, keyboard. */

import { find, h } from "./dom.js";
import { count, labelOf, percent, plural, reasonOf, summarize, thousands } from "./words.js";

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
const KINDS = { confident: "confident", uncertain: "uncertain", other: "none of the classes", failed: "failed" };
const CHECKED = { right: "right", wrong: "wrong" }; // by the visitor's label

export class Gallery {
	#queue;
	#service;
	#actions;
	#tiles = new Map();
	#selected = null;
	#stop = null; // the job whose tile the Tab key reaches
	#timer = 0;

	/** actions: {open, select, remove}, functions of a job, and leave, for the Escape key. */
	constructor(queue, service, actions) {
		this.#queue = queue;
		this.#service = service;
		this.#actions = actions;
		find("sort").onchange = find("filter").onchange = () => this.arrange();
		find("expand").onclick = () => this.#expand(!this.#expanded);
		find("tiles").onkeydown = (event) => this.#key(event);
		queue.addEventListener("changed", ({ detail }) => {
			if (!queue.all.includes(detail)) return;
			this.#fill(detail);
			// Collects the changes of 50 ms.
			this.#timer ||= setTimeout(() => this.arrange(), 50);
		});
		queue.addEventListener("labelled", ({ detail }) => {
			if (!this.#tiles.has(detail)) return;
			this.#fill(detail);
			this.arrange();
		});
		queue.addEventListener("thumb", ({ detail }) => this.#tiles.has(detail) && this.#fill(detail));
		queue.addEventListener("removed", ({ detail }) => {
			for (const job of detail) this.#tiles.delete(job);
			this.arrange();
		});
	}

	/** The filtered jobs in display order. */
	get shown() {
		const [kind, label] = find("filter").value.split(/:(.*)/s);
		const wanted = (job) => (label === undefined ? ["all", this.#kind(job), this.#checked(job)].includes(kind) : this.#label(job) === label);
		return this.#queue.all.filter(wanted).sort(ORDERS[find("sort").value]);
	}

	/** Whether some images are not shown. */
	get filtered() {
		return find("filter").value !== "all";
	}

	/** Mark the tile of the selected job, and show its position. */
	mark(job) {
		this.#button(this.#selected)?.removeAttribute("aria-current");
		this.#selected = job;
		this.#button(job)?.setAttribute("aria-current", "true");
		const tile = this.#button(job)?.parentElement;
		const list = find("tiles");
		if (tile) {
			// Scrolls the row only: scrollIntoView() would scroll the page too.
			const left = tile.offsetLeft - list.offsetLeft;
			list.scrollLeft = Math.min(left - 6, Math.max(list.scrollLeft, left + tile.offsetWidth + 6 - list.clientWidth));
		}
		this.#setStop();
	}

	/** Focus the tile of the selected job. */
	focus() {
		this.#button(this.#stop)?.focus();
	}

	/** The job so many tiles after the selected one, if there is one. */
	neighbour(step) {
		const { shown } = this;
		return shown[shown.indexOf(this.#selected) + step];
	}

	get #expanded() {
		return find("gallery").classList.contains("expanded");
	}

	#expand(expanded) {
		find("gallery").classList.toggle("expanded", expanded);
		find("expand").setAttribute("aria-expanded", expanded);
		find("expand").textContent = expanded ? "Show less" : "Show all";
	}

	#button(job) {
		return this.#tiles.get(job)?.firstChild;
	}

	#kind(job) {
		if (job.state === "done") return summarize(job.answer.result, this.#service.card).kind;
		return job.settled ? "failed" : "pending";
	}

	/** The class that the image counts for. */
	#label(job) {
		return ["confident", "uncertain"].includes(this.#kind(job)) ? first(job).label : undefined;
	}

	/** "right" or "wrong", or undefined if the right label is not known. */
	#checked({ answer, right }) {
		if (!answer || right === null) return undefined;
		return labelOf(answer.result, this.#service.card) === right ? "right" : "wrong";
	}

	#key(event) {
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		const { shown } = this;
		const at = shown.findIndex((job) => this.#button(job) === document.activeElement);
		const row = this.#expanded ? this.#columns() : 0;
		const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row, Home: -at, End: shown.length - 1 - at };
		if (at < 0) return;
		if (event.key in steps) {
			const job = shown[at + steps[event.key]];
			if (job && job !== shown[at]) {
				this.#actions.select(job);
				this.focus();
			}
		} else if (event.key === "Delete") {
			this.#actions.remove(shown[at]);
			this.focus();
		} else if (event.key === "Escape") {
			if (this.#expanded) this.#expand(false);
			else this.#actions.leave();
		} else return;
		event.preventDefault();
	}

	/** Number of tiles in a row. */
	#columns() {
		const [head, ...rest] = find("tiles").children;
		return 1 + rest.findIndex((tile) => tile.offsetTop > head.offsetTop) || rest.length + 1;
	}

	#fill(job) {
		if (!this.#tiles.has(job)) {
			const onclick = () => this.#actions.open(job);
			this.#tiles.set(job, h("li", h("button", { onclick, tabindex: job === this.#stop ? 0 : -1 })));
		}
		const kind = this.#kind(job);
		const { name, thumb, state, problem } = job;
		const best = first(job);
		const summary = kind in KINDS && job.answer ? summarize(job.answer.result, this.#service.card) : {};
		const [text, more] = {
			pending: [state, ""],
			failed: [problem ? reasonOf(problem) : state, ""],
			confident: [best?.label, best && percent(best.probability)],
			uncertain: [`${best?.label}?`, summary.reason],
			other: [`none of ${count(this.#service.card?.labels.length ?? 0)}`, ""],
		}[kind];
		const button = this.#button(job);
		const checked = this.#checked(job) ?? "";
		button.className = `tile ${kind} ${checked}`.trim();
		button.setAttribute("aria-label", `${name}: ${text} ${more} ${checked}`.trim());
		button.title = name;
		const preview = thumb
			? h("img", { src: thumb, alt: "", loading: "lazy" })
			: h("span.no-thumb", thumb === "" && name.split(".").pop().slice(0, 5));
		button.replaceChildren(preview, h("span.caption", h("b", text), h("span", more)));
	}

	#setStop() {
		const { shown } = this;
		const stop = shown.includes(this.#selected) ? this.#selected : shown[0];
		this.#button(this.#stop)?.setAttribute("tabindex", -1);
		this.#stop = stop;
		this.#button(stop)?.setAttribute("tabindex", 0);
		this.#showPosition(shown);
	}

	/** The choices of the filter, with the number of images of each. */
	#fillFilter() {
		const tally = new Map();
		const add = (key) => tally.set(key, (tally.get(key) ?? 0) + 1);
		for (const job of this.#queue.all) {
			add(this.#kind(job));
			if (this.#label(job) !== undefined) add(`class:${this.#label(job)}`);
			if (this.#checked(job)) add(this.#checked(job));
		}
		const filter = find("filter");
		const { value } = filter;
		const option = (key, text) => h("option", { value: key, selected: key === value }, `${text} (${tally.get(key) ?? 0})`);
		const checked = Object.entries(CHECKED).filter(([kind]) => tally.has(kind) || kind === value);
		const kinds = [...Object.entries(KINDS), ...checked].map(([kind, text]) => option(kind, text));
		const classes = [...new Set([...tally.keys(), value])].filter((key) => key.startsWith("class:")).sort();
		const text = `${[...tally].sort()}`;
		if (text === filter.dataset.tally) return; // leaves an open menu as it is
		filter.dataset.tally = text;
		const all = h("option", { value: "all", selected: value === "all" }, "all");
		filter.replaceChildren(all, ...kinds, ...(classes.length ? [h("optgroup", { label: "class" }, classes.map((key) => option(key, key.slice(6))))] : []));
	}

	/** Show the present state of all jobs. */
	arrange() {
		clearTimeout(this.#timer);
		this.#timer = 0;
		const { all } = this.#queue;
		this.#fillFilter();
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
		this.#setStop();
		const settled = all.filter((job) => job.settled).length;
		const failed = all.filter((job) => this.#kind(job) === "failed").length;
		const labelled = all.map((job) => this.#checked(job)).filter(Boolean);
		find("count").textContent =
			(settled < all.length ? `${thousands(settled)} of ${thousands(all.length)} done` : plural(all.length, "image")) +
			(failed ? `, ${thousands(failed)} failed` : "") +
			(labelled.length ? `; ${thousands(labelled.filter((each) => each === "right").length)} of ${thousands(labelled.length)} right` : "") +
			(shown.length < all.length ? `; ${thousands(shown.length)} shown` : "");
		Object.assign(find("progress"), { hidden: settled === all.length, max: all.length || 1, value: settled });
		find("csv").textContent = this.filtered ? `Download CSV of ${thousands(shown.length)}` : "Download CSV";
		find("csv").disabled = !shown.length || !this.#service.card;
	}

	#showPosition(shown) {
		const at = shown.indexOf(this.#selected);
		find("steps").hidden = this.#queue.all.length < 2;
		find("position").textContent = at < 0 ? "" : `${thousands(at + 1)} of ${thousands(shown.length)}`;
		find("previous").disabled = at < 1;
		find("next").disabled = at === shown.length - 1;
	}
}
