/** The uploaded images: at most four requests run at a time, and large files are sent one after the other. */

import { Problem } from "./service.js";

const CONCURRENT = 4;
const UPLOADING = 1e6; // bytes that are sent at the same time, unless one file is larger
const THUMB = 176; // pixels
const LARGE = 300_000; // bytes of a file that is sent as a smaller copy, if that saves half of it
const SIDE = 1024; // longer side of a copy, pixels

/**
 * One image and the state of its request.
 *
 * state: "queued", "sending", "waiting" (for the service), "done", "failed" or "cancelled"
 * answer: explains the top class; explained: label -> answer, for each class requested
 * thumb: the URL of a thumbnail; "" if the browser cannot decode the image
 * copy: a JPEG copy that is sent instead of the file, null if there is none, undefined if none was made yet
 * loaded: bytes that were sent
 * right: the right label, one of the classes or NONE; null if it is not known
 * stored: whether the service has stored it
 */
class Job {
	state = "queued";
	answer = null;
	problem = null;
	thumb = null;
	sentAt = 0;
	loaded = 0;
	copy = undefined;
	right = null;
	stored = false;
	labelling = Promise.resolve(); // ends when the last label was sent
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

	/** What is sent. */
	get body() {
		return this.copy ?? this.file;
	}

	/** Bytes that are still to be sent. */
	get unsent() {
		return this.state === "sending" || this.state === "waiting" ? this.body.size - this.loaded : 0;
	}
}

/** Events: "changed", "progress", "labelled" and "thumb" (detail: a job), "removed" (detail: jobs). */
export class Queue extends EventTarget {
	all = [];
	#service;
	#thumbs = Promise.resolve();
	#copies = Promise.resolve();
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
		Object.assign(job, { answer: null, problem: null, loaded: 0, abort: new AbortController() });
		this.#setState(job, "queued");
		this.#startNext();
	}

	/** Classify all images again. */
	restart() {
		for (const job of this.all) this.retry(job);
	}

	/** Send the file itself instead of a copy. */
	original(job) {
		job.copy = null;
		this.retry(job);
	}

	/** Send a JPEG copy of a limited size. */
	async copy(job) {
		try {
			job.copy = await jpegOf(job.file);
			this.retry(job);
		} catch {
			job.problem = new Problem(0, "unreadable-here", "Not copied", "this browser cannot open the image");
			this.#emit("changed", job);
		}
	}

	/** Set the right label of an image, or null, and send it if the service stores labels. Throws Problem. */
	async correct(job, label) {
		Object.assign(job, { right: label, stored: false });
		this.#emit("labelled", job);
		if (!this.#service.storesLabels) return;
		const { requestId } = job.answer;
		const sending = job.labelling.then(() => this.#service.feedback(requestId, label));
		job.labelling = sending.catch(() => {});
		await sending;
		if (job.right !== label) return;
		job.stored = label !== null;
		this.#emit("labelled", job);
	}

	/** The answer of /explain for a class, cached. */
	async explain(job, label) {
		const { answer, explained, body } = job;
		if (answer.views[0].maps?.[label]) return { ...answer, label, views: answer.views.map((view) => ({ ...view, map: view.maps[label] })) };
		if (!explained.has(label)) explained.set(label, await this.#service.explain(body, { label, signal: job.abort.signal }));
		return explained.get(label);
	}

	#startNext() {
		while (this.#running < CONCURRENT) {
			const next = this.all.find((job) => job.state === "queued");
			const unsent = this.all.reduce((sum, job) => sum + job.unsent, 0);
			if (!next || (unsent && unsent + next.body.size > UPLOADING)) return;
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
			Object.assign(job, { sentAt: Date.now(), loaded: 0 });
			this.#setState(job, state);
		};
		const onprogress = (loaded) => {
			if (signal.aborted) return;
			Object.assign(job, { sentAt: Date.now(), loaded: Math.min(loaded, job.body.size) });
			this.#emit("progress", job);
			this.#startNext();
		};
		onstate("waiting");
		if (job.copy === undefined) job.copy = await this.#smaller(job.file);
		try {
			signal.throwIfAborted();
			const answer = await this.#service.explain(job.body, { signal, onstate, onprogress });
			if (signal.aborted) return;
			job.answer = answer;
			job.explained = new Map([[answer.label, answer]]);
			this.#setState(job, "done");
			if (job.right) this.correct(job, job.right).catch(() => {}); // of an earlier answer
		} catch (error) {
			if (signal.aborted) return; // removed or cancelled: its state is set already
			// A format that this browser can read and the service cannot.
			if (error.status === 415 && !job.copy && (job.copy = await jpegOf(job.file).catch(() => null))) {
				return signal.aborted || this.#run(job);
			}
			if (signal.aborted) return;
			job.problem = error instanceof Problem ? error : new Problem(0, "", "The page failed", String(error));
			this.#setState(job, "failed");
		}
	}

	/** A copy of a large file for a slow network; null if it would not save much. */
	async #smaller(file) {
		if (file.size < LARGE) return null;
		// One at a time, to limit memory.
		const copying = this.#copies.then(() => jpegOf(file)).catch(() => null);
		this.#copies = copying;
		const copy = await copying;
		return copy?.reduced && copy.size < file.size / 2 ? copy : null;
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

/** A JPEG copy of an image, upright, as a Blob with the size of the original: {width, height, reduced}. */
async function jpegOf(file) {
	const image = new Image();
	image.src = URL.createObjectURL(file);
	try {
		await image.decode();
		const { naturalWidth: width, naturalHeight: height } = image;
		const scale = Math.min(1, SIDE / Math.max(width, height));
		const canvas = new OffscreenCanvas(Math.ceil(width * scale), Math.ceil(height * scale));
		const context = canvas.getContext("2d");
		context.imageSmoothingQuality = "high";
		context.fillStyle = "white"; // the service's background for transparency
		context.fillRect(0, 0, canvas.width, canvas.height);
		context.drawImage(image, 0, 0, canvas.width, canvas.height);
		const copy = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
		return Object.assign(copy, { width, height, reduced: scale < 1 });
	} finally {
		URL.revokeObjectURL(image.src);
	}
}
