/** The uploaded images: at most four requests run at a time. */

import { Problem } from "./service.js";

const CONCURRENT = 4;
const THUMB = 176; // pixels
const COPY = 1600; // longer side of a copy, pixels

/**
 * One image and the state of its request.
 *
 * state: "queued", "sending", "waiting" (for the service), "done", "failed" or "cancelled"
 * answer: explains the top class; explained: label -> answer, for each class requested
 * thumb: the URL of a thumbnail; "" if the browser cannot decode the image
 * copied: whether `file` is a JPEG copy
 */
class Job {
	state = "queued";
	answer = null;
	problem = null;
	thumb = null;
	sentAt = 0;
	copied = false;
	explained = new Map();
	abort = new AbortController();

	constructor(file, note) {
		this.file = file;
		this.name = file.name || "image";
		this.note = note;
	}

	get settled() {
		return ["done", "failed", "cancelled"].includes(this.state);
	}
}

/** Events: "changed" and "thumb" (detail: a job), "removed" (detail: jobs). */
export class Queue extends EventTarget {
	all = [];
	#service;
	#thumbs = Promise.resolve();
	#running = 0;
	#removed = []; // by the last call of remove()

	constructor(service) {
		super();
		this.#service = service;
	}

	add(files, note) {
		const added = files.map((file) => new Job(file, note));
		this.all.push(...added);
		for (const job of added) {
			this.#emit("changed", job);
			this.#queueThumb(job);
		}
		this.#startNext();
		return added;
	}

	/** Remove jobs. Returns a function that puts them back; the next removal ends its effect. */
	remove(removed) {
		const before = this.all;
		this.all = this.all.filter((job) => !removed.includes(job));
		for (const job of removed) job.abort.abort();
		for (const job of this.#removed) if (!this.all.includes(job)) URL.revokeObjectURL(job.thumb);
		this.#removed = removed;
		this.#emit("removed", removed);
		return () => {
			if (this.#removed !== removed) return;
			this.#removed = [];
			const added = this.all.filter((job) => !before.includes(job));
			this.all = [...before.filter((job) => removed.includes(job) || this.all.includes(job)), ...added];
			for (const job of removed) {
				if (job.settled) {
					job.abort = new AbortController();
					this.#emit("changed", job);
				} else this.retry(job);
				if (!job.thumb) this.#queueThumb(job);
			}
		};
	}

	/** Cancel all unfinished jobs. */
	cancel() {
		for (const job of this.all.filter((each) => !each.settled)) {
			job.abort.abort();
			this.#setState(job, "cancelled");
		}
	}

	retry(job) {
		job.abort.abort();
		Object.assign(job, { answer: null, problem: null, abort: new AbortController() });
		this.#setState(job, "queued");
		this.#startNext();
	}

	/** Classify all images again. */
	restart() {
		for (const job of this.all) this.retry(job);
	}

	/** Replace the file by a JPEG copy of a limited size and send it again. */
	async copy(job) {
		job.copied = true;
		try {
			const bitmap = await createImageBitmap(job.file);
			const scale = Math.min(1, COPY / Math.max(bitmap.width, bitmap.height));
			const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
			const context = canvas.getContext("2d");
			context.imageSmoothingQuality = "high";
			context.fillStyle = "white"; // the service's background for transparency
			context.fillRect(0, 0, canvas.width, canvas.height);
			context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
			bitmap.close();
			job.file = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
			this.retry(job);
		} catch {
			job.problem = new Problem(0, "unreadable-here", "Not copied", "this browser cannot open the image");
			this.#emit("changed", job);
		}
	}

	/** The answer of /explain for a class, cached. */
	async explain(job, label) {
		const { explained, file } = job;
		if (!explained.has(label)) explained.set(label, await this.#service.explain(file, { label, signal: job.abort.signal }));
		return explained.get(label);
	}

	#startNext() {
		while (this.#running < CONCURRENT) {
			const next = this.all.find((job) => job.state === "queued");
			if (!next) return;
			this.#running++;
			this.#run(next).finally(() => {
				this.#running--;
				this.#startNext();
			});
		}
	}

	async #run(job) {
		const { signal } = job.abort;
		const onstate = (state) => {
			if (signal.aborted) return; // its state is set already
			job.sentAt = Date.now();
			this.#setState(job, state);
		};
		onstate("waiting");
		try {
			const answer = await this.#service.explain(job.file, { signal, onstate });
			if (signal.aborted) return;
			job.answer = answer;
			job.explained = new Map([[answer.label, answer]]);
			this.#setState(job, "done");
		} catch (error) {
			if (signal.aborted) return; // removed or cancelled: its state is set already
			job.problem = error instanceof Problem ? error : new Problem(0, "", "The page failed", String(error));
			this.#setState(job, "failed");
		}
	}

	/** One at a time, to limit memory. */
	#queueThumb(job) {
		this.#thumbs = this.#thumbs.then(() => this.#makeThumb(job));
	}

	async #makeThumb(job) {
		if (!this.all.includes(job)) return;
		try {
			const small = await createImageBitmap(job.file, { resizeHeight: THUMB, resizeQuality: "medium" });
			const canvas = new OffscreenCanvas(THUMB, THUMB);
			const width = Math.max(small.width, THUMB);
			const height = (width / small.width) * THUMB;
			canvas.getContext("2d").drawImage(small, (THUMB - width) / 2, (THUMB - height) / 2, width, height);
			small.close();
			job.thumb = URL.createObjectURL(await canvas.convertToBlob({ type: "image/webp" }));
		} catch {
			job.thumb = "";
		}
		this.#emit("thumb", job);
	}

	#setState(job, state) {
		job.state = state;
		this.#emit("changed", job);
	}

	#emit(type, detail) {
		this.dispatchEvent(new CustomEvent(type, { detail }));
	}
}
