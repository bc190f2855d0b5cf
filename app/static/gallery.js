/** The results as tiles: sorted, filtered, chosen. */

import { find, h } from "./dom.js";
import { count, percent, verdict } from "./words.js";

const first = (picture) => picture.answer?.result.top_k[0];

/** How to sort by a value that not every picture has: those without come last. */
const by = (value, compare) => (a, b) => {
	const [x, y] = [value(a), value(b)];
	return x === undefined || y === undefined ? (x === undefined) - (y === undefined) : compare(x, y);
};
const ORDERS = {
	added: () => 0,
	label: by((picture) => first(picture)?.label, (x, y) => x.localeCompare(y)),
	confidence: by((picture) => first(picture)?.probability, (x, y) => y - x),
	familiarity: by((picture) => picture.answer?.result.in_distribution, (x, y) => y - x),
};

export class Gallery {
	#pictures;
	#card = null;
	#choose;
	#tiles = new Map();
	#chosen = null;
	#timer = 0;

	/** choose: called with the picture whose tile was pressed. */
	constructor(pictures, service, choose) {
		this.#pictures = pictures;
		this.#choose = choose;
		service.card().then((card) => (this.#card = card));
		find("sort").onchange = find("filter").onchange = () => this.#arrange();
		pictures.addEventListener("changed", ({ detail }) => {
			if (!pictures.all.includes(detail)) return;
			this.#fill(detail);
			// Once for all that happens at the time.
			this.#timer ||= setTimeout(() => this.#arrange(), 50);
		});
		pictures.addEventListener("thumb", ({ detail }) => this.#tiles.has(detail) && this.#fill(detail));
		pictures.addEventListener("removed", ({ detail }) => {
			for (const picture of detail) this.#tiles.delete(picture);
			this.#arrange();
		});
	}

	/** The pictures as they stand there. */
	get shown() {
		const wanted = find("filter").value;
		const shown = this.#pictures.all.filter((picture) => wanted === "all" || this.#kind(picture) === wanted);
		return shown.sort(ORDERS[find("sort").value]);
	}

	/** Mark the tile of the picture that is looked at. */
	mark(picture) {
		this.#tiles.get(this.#chosen)?.firstChild.removeAttribute("aria-current");
		this.#chosen = picture;
		this.#tiles.get(picture)?.firstChild.setAttribute("aria-current", "true");
	}

	focus(picture) {
		this.#tiles.get(picture)?.firstChild.focus();
	}

	#kind(picture) {
		if (picture.state === "done") return verdict(picture.answer.result, this.#card).kind;
		return picture.settled ? "failed" : "pending";
	}

	#fill(picture) {
		if (!this.#tiles.has(picture)) this.#tiles.set(picture, h("li", h("button", { onclick: () => this.#choose(picture) })));
		const kind = this.#kind(picture);
		const { name, thumb, state, problem } = picture;
		const best = first(picture);
		const text = { pending: state, failed: problem?.title ?? state, sure: best?.label, unsure: `${best?.label}?`, other: `none of ${count(this.#card?.labels.length)}` }[kind];
		const share = kind === "sure" || kind === "unsure" ? percent(best.probability) : "";
		const button = this.#tiles.get(picture).firstChild;
		button.className = `tile ${kind}`;
		button.setAttribute("aria-label", `${name}: ${text} ${share}`);
		button.title = name;
		const seen = thumb
			? h("img", { src: thumb, alt: "", loading: "lazy" })
			: h("span.no-thumb", thumb === "" && name.split(".").pop().slice(0, 5));
		button.replaceChildren(seen, h("span.caption", h("b", text), h("span", share)));
	}

	#arrange() {
		this.#timer = 0;
		const { all } = this.#pictures;
		const { shown } = this;
		find("gallery").hidden = all.length < 2;
		document.body.classList.toggle("filled", all.length > 0);
		const list = find("tiles");
		const wanted = shown.map((picture) => this.#tiles.get(picture));
		if (wanted.length !== list.children.length || wanted.some((tile, i) => list.children[i] !== tile)) {
			const focused = document.activeElement;
			list.replaceChildren(...wanted);
			if (list.contains(focused)) focused.focus();
		}
		const settled = all.filter((picture) => picture.settled).length;
		const failed = all.filter((picture) => this.#kind(picture) === "failed").length;
		find("count").textContent =
			(settled < all.length ? `${settled} of ${all.length} done` : `${all.length} pictures`) +
			(failed ? `, ${failed} without an answer` : "") +
			(shown.length < all.length ? `; ${shown.length} shown` : "");
	}
}
