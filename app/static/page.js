/** The page: takes pictures in, and shows what comes of them. */

import { showCard } from "./card.js";
import { Detail } from "./detail.js";
import { announce, find, h } from "./dom.js";
import { EXAMPLES, SIDE } from "./examples.js";
import { csvOf } from "./exports.js";
import { Gallery } from "./gallery.js";
import { Pictures } from "./pictures.js";
import { Service } from "./service.js";
import { sentence, verdict } from "./words.js";

const service = new Service();
const pictures = new Pictures(service);
const gallery = new Gallery(pictures, service, choose);
const detail = new Detail(service, {
	cancel: () => pictures.cancel(),
	explain: (picture, label) => pictures.explain(picture, label),
	remove,
	retry: (picture) => pictures.retry(picture),
	shrink: (picture) => pictures.shrink(picture),
});
let card = null;
service.card().then((loaded) => showCard((card = loaded)));

function choose(picture) {
	detail.show(picture);
	gallery.mark(picture);
	const { top, bottom } = find("detail").getBoundingClientRect();
	if (picture && (bottom < 200 || top > innerHeight - 200)) find("detail").scrollIntoView();
}

function remove(picture) {
	const { shown } = gallery;
	const at = shown.indexOf(picture);
	const next = shown[at + 1] ?? shown[at - 1] ?? pictures.all.find((each) => each !== picture) ?? null;
	pictures.remove([picture]);
	choose(next);
	announce(`Removed ${picture.name}.`);
	find(next ? "remove" : "choose").focus();
}

find("clear").onclick = () => {
	pictures.remove(pictures.all);
	choose(null);
	announce("Cleared.");
	find("choose").focus();
};

find("csv").onclick = () => {
	const href = URL.createObjectURL(new Blob([csvOf(gallery.shown, card)], { type: "text/csv" }));
	h("a", { href, download: "tenfold.csv" }).click();
	setTimeout(() => URL.revokeObjectURL(href), 10_000);
};

// What comes in: picked, photographed, dropped, pasted, drawn.

function add(files, note) {
	if (files.length) choose(pictures.add([...files], note)[0]);
}

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
	find(button).onclick = () => find(input).click();
	find(input).onchange = ({ target }) => {
		add(target.files);
		target.value = ""; // so that the same file can be picked again
	};
}

let within = 0; // elements that what is dragged is over
for (const [type, change] of Object.entries({ dragenter: 1, dragleave: -1, dragover: 0, drop: -Infinity })) {
	addEventListener(type, (event) => {
		if (!event.dataTransfer?.types.includes("Files")) return;
		event.preventDefault();
		within = Math.max(0, within + change);
		document.body.classList.toggle("dragging", within > 0);
		if (type === "drop") add(event.dataTransfer.files);
	});
}

addEventListener("paste", (event) => add(event.clipboardData?.files ?? []));

for (const [name, draw] of Object.entries(EXAMPLES)) {
	const canvas = h("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
	draw(canvas.getContext("2d"));
	const file = (blob) => new File([blob], `${name.replace(" ", "-")}.png`, { type: "image/png" });
	const onclick = () => canvas.toBlob((blob) => add([file(blob)], "Drawn by this page."));
	find("examples").append(h("li", h("button", { onclick, "aria-label": name }, canvas, h("span", name))));
}

// What happens to them.

let told = 0;
pictures.addEventListener("changed", ({ detail: picture }) => {
	if (picture === detail.picture) detail.update();
	if (!picture.settled) return;
	const { all } = pictures;
	const left = all.filter((each) => !each.settled).length;
	if (all.length === 1) {
		const { title, text } = picture.answer ? verdict(picture.answer.result, card) : {};
		announce(`${picture.name}: ${title ? `${title}. ${text}` : sentence(picture.problem?.message ?? "cancelled")}`);
	} else if (!left || Date.now() - told > 5000) {
		told = Date.now();
		announce(left ? `${left} pictures to go.` : `All ${all.length} pictures are done.`);
	}
});

// What the service asks for.

const TITLES = {
	busy: "The service is at capacity.",
	starting: "The service is not ready.",
	unreachable: "The service cannot be reached.",
	broken: "The service does not tell about its model.",
};
let kind = "";

function showWait() {
	const { wait } = service;
	const title = TITLES[wait?.kind];
	find("plain").hidden = service.explains;
	find("key-form").hidden = wait?.kind !== "key";
	find("banner").hidden = !title;
	find("key-text").textContent = service.hasKey ? "That key is not accepted. Which is right?" : "This service asks for an API key.";
	if (title) {
		const left = Math.ceil((wait.until - Date.now()) / 1000);
		find("banner-title").textContent = title;
		find("banner-detail").textContent = sentence(wait.detail);
		find("countdown").textContent = left === Infinity ? "" : left > 0 ? `Going on by itself in ${left} s.` : "Trying now …";
		find("stop").hidden = pictures.all.every((picture) => picture.settled);
	}
	if (kind === (wait?.kind ?? "")) return;
	kind = wait?.kind ?? "";
	announce(title ?? (kind ? find("key-text").textContent : "The service answers."));
	if (kind === "key") find("key").focus();
}
service.addEventListener("change", showWait);
setInterval(() => service.wait && showWait(), 250);
find("now").onclick = () => service.retryNow();
find("stop").onclick = () => pictures.cancel();
find("key-form").onsubmit = (event) => {
	event.preventDefault();
	service.useKey(find("key").value);
	event.target.reset();
};
