/** The page: connects its parts. */

import { showCard } from "./card.js";
import { Detail } from "./detail.js";
import { announce, find, h, notify } from "./dom.js";
import { csvOf, save } from "./exports.js";
import { Gallery } from "./gallery.js";
import { takeImages } from "./intake.js";
import { Queue } from "./queue.js";
import { Service } from "./service.js";
import { plural, problemText, sentence, summarize } from "./words.js";

const service = new Service();
const queue = new Queue(service);
const gallery = new Gallery(queue, service, { open, select, remove, leave: () => find("headline").focus() });
const detail = new Detail(service, {
	cancel: () => queue.cancel(),
	correct: (job, label) => queue.correct(job, label),
	copy: (job) => queue.copy(job),
	original: (job) => queue.original(job),
	explain: (job, label) => queue.explain(job, label),
	remove(job) {
		remove(job);
		find(detail.job ? "remove" : "choose").focus();
	},
	retry: (job) => queue.retry(job),
});
const loadCard = () => service.loadCard().then(() => service.card && showCard(service.card));
loadCard();

service.models().then(({ models, feedback, stores_images: images }) => {
	find("models").append(...models.map(({ name }) => h("option", name)));
	find("chooser").hidden = models.length < 2;
	find("live-camera").hidden = images; // it would store each frame
	const labels = "It stores the results and your corrections, but not the images.";
	find("storage").textContent = images ? "It stores them, with the results and your corrections, to improve the model." : feedback ? labels : "It does not store them.";
});
find("models").onchange = ({ target }) => {
	notify(); // results of the other model cannot be put back
	service.use(target.value);
	loadCard();
	queue.restart();
};

takeImages((files, note) => {
	if (!files.length) return;
	notify();
	show(queue.add(files, note)[0]);
	gallery.arrange();
	reveal();
}, classify);

/** What the camera sees: {title, text}. */
async function classify(frame, signal) {
	const waiting = () => service.wait && (find("seen-text").textContent = "Waiting for the service …");
	return summarize(await service.classify(frame, signal, waiting), service.card);
}

// Choosing an image.

function show(job) {
	detail.show(job);
	gallery.mark(job);
}

/** Show an image, and announce its result. */
function select(job) {
	show(job);
	announce(`${job.name}, ${find("position").textContent}: ${resultText(job)}`);
}

/** Show an image, and move to its verdict if that is out of sight. */
function open(job) {
	select(job);
	if (reveal()) find("headline").focus({ preventScroll: true });
}

/** Scroll to the verdict if it is out of sight. */
function reveal() {
	const { top, bottom } = find("verdict").getBoundingClientRect();
	const hidden = top < 0 || bottom > innerHeight;
	if (hidden) find("detail").scrollIntoView();
	return hidden;
}

function resultText(job) {
	if (job.answer) {
		const { title, text } = summarize(job.answer.result, service.card);
		return `${title}. ${text}`;
	}
	return job.problem ? `${job.problem.title}. ${problemText(job.problem)}` : sentence(job.state);
}

function walk(step) {
	const job = gallery.neighbour(step);
	if (!job) return;
	select(job);
	reveal();
}

for (const [id, step] of [["previous", -1], ["next", 1]]) find(id).onclick = () => walk(step);

addEventListener("keydown", (event) => {
	const { key, target } = event;
	if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !detail.job) return;
	if (key === "Escape" && find("detail").contains(target)) return gallery.focus();
	const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
	if (step && !target.closest("input, select, pre, dialog, .scroll, #tiles")) walk(step);
});

// Removing, with undo.

function removeAll(jobs, text, next) {
	const undo = queue.remove(jobs);
	show(next);
	notify(text, () => {
		undo();
		select(jobs[0]);
		find("headline").focus();
	});
}

function remove(job) {
	const at = gallery.shown.indexOf(job);
	const next = gallery.shown[at + 1] ?? gallery.shown[at - 1] ?? queue.all.find((each) => each !== job) ?? null;
	removeAll([job], `Removed ${job.name}.`, next);
}

find("clear").onclick = () => {
	removeAll(queue.all, `Removed ${plural(queue.all.length, "image")}.`, null);
	find("undo").focus();
};

addEventListener("beforeunload", (event) => queue.all.some((job) => job.answer) && event.preventDefault());

find("csv").onclick = () => {
	const { shown } = gallery;
	const part = gallery.filtered ? `-${shown.length}-of-${queue.all.length}` : "";
	save(new Blob([csvOf(shown, service.card)], { type: "text/csv" }), `tenfold${part}.csv`);
};

const openReport = () => location.hash === "#model" && (find("report").open = true);
addEventListener("hashchange", openReport);
openReport();

// Results.

let announcedAt = 0;
queue.addEventListener("progress", ({ detail: job }) => job === detail.job && detail.progress());
queue.addEventListener("labelled", ({ detail: job }) => job === detail.job && detail.labelled());
queue.addEventListener("changed", ({ detail: job }) => {
	if (job === detail.job) detail.update();
	if (!job.settled) return;
	const { all } = queue;
	const left = all.filter((each) => !each.settled).length;
	if (all.length === 1) announce(`${job.name}: ${resultText(job)}`);
	else if (!left || Date.now() - announcedAt > 5000) {
		announcedAt = Date.now();
		announce(left ? `${plural(left, "image")} left.` : `All ${all.length} images are done.`);
	}
});

// State of the service: retry countdown and API key.

const TITLES = {
	busy: "The service is at capacity.",
	starting: "The service is not ready.",
	unreachable: "The service cannot be reached.",
	broken: "The model card cannot be loaded.",
};
let announced = "";

function showWait() {
	const { wait } = service;
	const title = TITLES[wait?.kind];
	const needsKey = wait?.kind === "key";
	find("plain").hidden = service.explains;
	find("key-form").hidden = !needsKey;
	find("banner").hidden = !title;
	const trying = needsKey && wait.until !== Infinity;
	const keyText = service.hasKey ? "This key is not accepted. Enter another one." : "This service requires an API key.";
	find("key-text").textContent = trying ? "Checking the key …" : keyText;
	if (title) {
		const left = Math.ceil((wait.until - Date.now()) / 1000);
		find("banner-title").textContent = title;
		find("banner-detail").textContent = sentence(wait.detail);
		find("countdown").textContent = left === Infinity ? "" : left > 0 ? `Retrying in ${left} s.` : "Retrying …";
		find("stop").hidden = queue.all.every((job) => job.settled);
	}
	const text = title ?? (needsKey ? find("key-text").textContent : "");
	if (announced === text) return;
	announced = text;
	announce(text || "The service is available.");
	if (needsKey && !trying) find("key").focus();
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
