/** The page: takes images in and shows their results. */

import { showCard } from "./card.js";
import { Detail } from "./detail.js";
import { announce, find, h } from "./dom.js";
import { EXAMPLES, SIDE } from "./examples.js";
import { csvOf } from "./exports.js";
import { Gallery } from "./gallery.js";
import { Queue } from "./queue.js";
import { Service } from "./service.js";
import { sentence, summarize } from "./words.js";

const service = new Service();
const queue = new Queue(service);
const gallery = new Gallery(queue, service, select);
const detail = new Detail(service, {
	cancel: () => queue.cancel(),
	explain: (job, label) => queue.explain(job, label),
	remove,
	retry: (job) => queue.retry(job),
	shrink: (job) => queue.shrink(job),
});
const loadCard = () => service.loadCard().then(() => service.card && showCard(service.card));
loadCard();

service.names().then((names) => {
	find("models").append(...names.map((name) => h("option", name)));
	find("chooser").hidden = names.length < 2;
});
find("models").onchange = ({ target }) => {
	service.use(target.value);
	loadCard();
	queue.restart();
};

function select(job) {
	detail.show(job);
	gallery.mark(job);
	const { top, bottom } = find("detail").getBoundingClientRect();
	if (job && (bottom < 200 || top > innerHeight - 200)) find("detail").scrollIntoView();
}

function remove(job) {
	const { shown } = gallery;
	const at = shown.indexOf(job);
	const next = shown[at + 1] ?? shown[at - 1] ?? queue.all.find((each) => each !== job) ?? null;
	queue.remove([job]);
	select(next);
	announce(`Removed ${job.name}.`);
	find(next ? "remove" : "choose").focus();
}

find("clear").onclick = () => {
	queue.remove(queue.all);
	select(null);
	announce("Cleared.");
	find("choose").focus();
};

find("csv").onclick = () => {
	const href = URL.createObjectURL(new Blob([csvOf(gallery.shown, service.card)], { type: "text/csv" }));
	h("a", { href, download: "tenfold.csv" }).click();
	setTimeout(() => URL.revokeObjectURL(href), 10_000);
};

// Input: file dialogue, camera, drag and drop, clipboard, examples.

function add(files, note) {
	if (files.length) select(queue.add([...files], note)[0]);
}

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
	find(button).onclick = () => find(input).click();
	find(input).onchange = ({ target }) => {
		add(target.files);
		target.value = ""; // allows choosing the same file again
	};
}

let depth = 0; // nested elements below the pointer that have received dragenter
for (const [type, change] of Object.entries({ dragenter: 1, dragleave: -1, dragover: 0, drop: -Infinity })) {
	addEventListener(type, (event) => {
		if (!event.dataTransfer?.types.includes("Files")) return;
		event.preventDefault();
		depth = Math.max(0, depth + change);
		document.body.classList.toggle("dragging", depth > 0);
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

// Results.

let announcedAt = 0;
queue.addEventListener("changed", ({ detail: job }) => {
	if (job === detail.job) detail.update();
	if (!job.settled) return;
	const { all } = queue;
	const left = all.filter((each) => !each.settled).length;
	if (all.length === 1) {
		const { title, text } = job.answer ? summarize(job.answer.result, service.card) : {};
		announce(`${job.name}: ${title ? `${title}. ${text}` : sentence(job.problem?.message ?? "cancelled")}`);
	} else if (!left || Date.now() - announcedAt > 5000) {
		announcedAt = Date.now();
		announce(left ? `${left} images left.` : `All ${all.length} images are done.`);
	}
});

// State of the service: retry countdown and API key.

const TITLES = {
	busy: "The service is at capacity.",
	starting: "The service is not ready.",
	unreachable: "The service cannot be reached.",
	broken: "The model card cannot be loaded.",
};
let kind = "";

function showWait() {
	const { wait } = service;
	const title = TITLES[wait?.kind];
	find("plain").hidden = service.explains;
	find("key-form").hidden = wait?.kind !== "key";
	find("banner").hidden = !title;
	find("key-text").textContent = service.hasKey ? "This key is not accepted. Enter another one." : "This service requires an API key.";
	if (title) {
		const left = Math.ceil((wait.until - Date.now()) / 1000);
		find("banner-title").textContent = title;
		find("banner-detail").textContent = sentence(wait.detail);
		find("countdown").textContent = left === Infinity ? "" : left > 0 ? `Retrying in ${left} s.` : "Retrying …";
		find("stop").hidden = queue.all.every((job) => job.settled);
	}
	if (kind === (wait?.kind ?? "")) return;
	kind = wait?.kind ?? "";
	announce(title ?? (kind ? find("key-text").textContent : "The service is available."));
	if (kind === "key") find("key").focus();
}
service.addEventListener("change", showWait);
setInterval(() => service.wait && showWait(), 250);
find("now").onclick = () => service.retryNow();
find("stop").onclick = () => queue.cancel();
find("key-form").onsubmit = (event) => {
	event.preventDefault();
	service.useKey(find("key").value);
	event.target.reset();
};
