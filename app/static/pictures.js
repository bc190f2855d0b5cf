/** The pictures that were added: four at a time go to the service. */

import { Problem } from "./service.js";

const AT_ONCE = 4;
const THUMB = 176; // pixels
const SHRUNK = 1600; // longer side of a picture that was too large, pixels

/**
 * One picture.
 *
 * state: "queued", "sending", "waiting" (the service asked for patience), "done", "failed" or "cancelled"
 * answer: of the likeliest class; explained: label -> answer, for each class that was asked about
 * thumb: the address of a small copy; "" where the browser cannot show the picture
 */
class Picture {
	state = "queued";
	answer = null;
	problem = null;
	thumb = null;
	sentAt = 0;
	shrunk = false;
	explained = new Map();
	abort = new AbortController();

	constructor(file, note) {
		this.file = file;
		this.name = file.name || "picture";
		this.note = note;
	}

	get settled() {
		return ["done", "failed", "cancelled"].includes(this.state);
	}
}

/** Events: "changed" and "thumb" (detail: a picture), "removed" (detail: pictures). */
export class Pictures extends EventTarget {
	all = [];
	#service;
	#thumbs = Promise.resolve();
	#running = 0;

	constructor(service) {
		super();
		this.#service = service;
	}

	add(files, note) {
		const added = files.map((file) => new Picture(file, note));
		this.all.push(...added);
		for (const picture of added) {
			this.#tell("changed", picture);
			this.#thumbs = this.#thumbs.then(() => this.#makeThumb(picture)); // one by one, for each takes memory
		}
		this.#pump();
		return added;
	}

	remove(gone) {
		this.all = this.all.filter((picture) => !gone.includes(picture));
		for (const picture of gone) {
			picture.abort.abort();
			URL.revokeObjectURL(picture.thumb);
		}
		this.#tell("removed", gone);
	}

	/** Stop what has no answer yet. */
	cancel() {
		for (const picture of this.all.filter((each) => !each.settled)) {
			picture.abort.abort();
			this.#enter(picture, "cancelled");
		}
	}

	retry(picture) {
		Object.assign(picture, { problem: null, abort: new AbortController() });
		this.#enter(picture, "queued");
		this.#pump();
	}

	/** Send a smaller copy of a picture that was too large. */
	async shrink(picture) {
		picture.shrunk = true;
		try {
			const whole = await createImageBitmap(picture.file);
			const scale = Math.min(1, SHRUNK / Math.max(whole.width, whole.height));
			const canvas = new OffscreenCanvas(Math.ceil(whole.width * scale), Math.ceil(whole.height * scale));
			const context = canvas.getContext("2d");
			context.imageSmoothingQuality = "high";
			context.fillStyle = "white"; // as the service lays it under transparency
			context.fillRect(0, 0, canvas.width, canvas.height);
			context.drawImage(whole, 0, 0, canvas.width, canvas.height);
			whole.close();
			picture.file = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
			this.retry(picture);
		} catch {
			picture.problem = new Problem(0, "", "Not shrunk", "this browser cannot open the picture");
			this.#tell("changed", picture);
		}
	}

	/** The answer of /explain for a class, asked for once. */
	async explain(picture, label) {
		const { explained, file } = picture;
		if (!explained.has(label)) explained.set(label, await this.#service.explain(file, { label, signal: picture.abort.signal }));
		return explained.get(label);
	}

	#pump() {
		while (this.#running < AT_ONCE) {
			const next = this.all.find((picture) => picture.state === "queued");
			if (!next) return;
			this.#running++;
			this.#run(next).finally(() => {
				this.#running--;
				this.#pump();
			});
		}
	}

	async #run(picture) {
		const { signal } = picture.abort;
		const onstate = (state) => {
			picture.sentAt = Date.now();
			this.#enter(picture, state);
		};
		onstate("waiting");
		try {
			const answer = await this.#service.explain(picture.file, { signal, onstate });
			if (signal.aborted) return;
			picture.answer = answer;
			picture.explained = new Map([[answer.label, answer]]);
			this.#enter(picture, "done");
		} catch (error) {
			if (signal.aborted) return; // removed or cancelled, and told so already
			picture.problem = error instanceof Problem ? error : new Problem(0, "", "The page failed", String(error));
			this.#enter(picture, "failed");
		}
	}

	async #makeThumb(picture) {
		if (!this.all.includes(picture)) return;
		try {
			const small = await createImageBitmap(picture.file, { resizeHeight: THUMB, resizeQuality: "medium" });
			const canvas = new OffscreenCanvas(THUMB, THUMB);
			const width = Math.max(small.width, THUMB);
			const height = (width / small.width) * THUMB;
			canvas.getContext("2d").drawImage(small, (THUMB - width) / 2, (THUMB - height) / 2, width, height);
			small.close();
			picture.thumb = URL.createObjectURL(await canvas.convertToBlob({ type: "image/webp" }));
			if (!this.all.includes(picture)) URL.revokeObjectURL(picture.thumb);
		} catch {
			picture.thumb = "";
		}
		this.#tell("thumb", picture);
	}

	#enter(picture, state) {
		picture.state = state;
		this.#tell("changed", picture);
	}

	#tell(type, detail) {
		this.dispatchEvent(new CustomEvent(type, { detail }));
	}
}
