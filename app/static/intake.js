/** The ways for images to enter: dialogues, camera, drag and drop, clipboard, examples. */

import { find, h, notify } from "./dom.js";
import { CLASSES, OTHERS } from "./examples.js";
import { plural } from "./words.js";
import { photograph } from "./webcam.js";

const IMAGE = /\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|mpo|avif|heic|heif|svg)$/i;
const ADDRESS = "This page sends nothing to other sites, so it cannot load an image from its address. Copy the image itself, or save it and drop the file.";

/** Call add() with the images of every kind of input, as a list of files and a note. classify: as in webcam.js. */
export function takeImages(add, classify) {
	/** Add the images of a folder. Other files are counted. */
	function addFolder(files) {
		const images = files.filter(({ name, type }) => !name.startsWith(".") && (IMAGE.test(name) || type.startsWith("image/")));
		add(images);
		const skipped = files.length - images.length;
		if (!images.length) notify("There is no image in the folder.");
		else if (skipped) notify(`${plural(skipped, "file")} of the folder ${skipped === 1 ? "is not an image and was" : "are not images and were"} skipped.`);
	}

	const inputs = { files: (files) => add(files), camera: (files) => add(files), folder: addFolder };
	for (const [id, take] of Object.entries(inputs)) {
		find(id).onchange = ({ target }) => {
			take([...target.files]);
			target.value = ""; // allows choosing the same file again
		};
	}
	find("choose").onclick = () => find("files").click();
	find("choose-folder").onclick = () => find("folder").click();
	const photo = async (live) => {
		const file = await photograph(live);
		if (file) add([file]);
	};
	find("photograph").onclick = () => (matchMedia("(pointer: coarse)").matches ? find("camera").click() : photo());
	find("live-camera").onclick = () => photo(classify);

	let depth = 0; // nested elements below the pointer that have received dragenter
	for (const [type, change] of Object.entries({ dragenter: 1, dragleave: -1, dragover: 0, drop: -Infinity })) {
		addEventListener(type, async (event) => {
			const { types } = event.dataTransfer ?? { types: [] };
			if (!types.includes("Files") && !types.includes("text/uri-list")) return;
			event.preventDefault();
			depth = Math.max(0, depth + change);
			document.body.classList.toggle("dragging", depth > 0);
			if (type !== "drop") return;
			const { files, items } = event.dataTransfer;
			const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
			if (entries.some((entry) => entry.isDirectory)) addFolder((await Promise.all(entries.map(filesOf))).flat());
			else if (files.length) add([...files]);
			else notify(ADDRESS);
		});
	}

	addEventListener("paste", ({ clipboardData, target }) => {
		if (target.matches?.("input")) return;
		if (clipboardData.files.length) add([...clipboardData.files]);
		else if (/^\s*(https?|data):/.test(clipboardData.getData("text"))) notify(ADDRESS);
	});

	for (const [id, examples] of Object.entries({ examples: CLASSES, others: OTHERS })) {
		for (const [name, note] of Object.entries(examples)) {
			const photo = `static/${name}.jpg`;
			const onclick = async () => {
				const response = await fetch(photo).catch(() => null);
				if (!response?.ok) return notify("The example cannot be loaded. Try again later.");
				add([new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" })], note);
			};
			const preview = h("img", { src: photo, alt: "", loading: "lazy", fetchpriority: "low" });
			find(id).append(h("li", { "data-label": name }, h("button", { onclick, "aria-label": name, title: name }, preview, h("span", name))));
		}
	}
}

/** All files of a dropped entry, those of nested folders too. */
async function filesOf(entry) {
	if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
	const reader = entry.createReader();
	const files = [];
	for (;;) {
		const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 of them
		if (!entries.length) return files;
		files.push(...(await Promise.all(entries.map(filesOf))).flat());
	}
}
