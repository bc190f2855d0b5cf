/** The HTTP client of the page. It waits and retries on its own. */

// The part of the model card that the page shows.
const FIELDS = [
	...["name", "version", "labels", "input.crop", "openvino.top1", "out_of_distribution.thresholds", "calibration.pictures"],
	...["top1", "ece", "accepted", "confusion", "reliability", "mistakes", "pictures", "photos"].map((name) => `metrics.${name}`),
].join();
const BACKOFF = [1, 2, 4, 8, 10]; // seconds
const MAPS = 10; // classes whose maps are loaded with the result

/** A final error of a request. */
export class Problem extends Error {
	constructor(status, kind, title, detail) {
		super(detail || title);
		Object.assign(this, { status, kind, title, detail });
	}
}

/**
 * Sends requests. No request is sent while `wait` is set. Its `kind` is
 *   "busy"         503: at capacity
 *   "starting"     503: loading or shutting down
 *   "unreachable"  no response
 *   "key"          401: an API key is required
 *   "broken"       GET /model failed
 * and `until` is its end, in milliseconds of Date.now(). Event "change": `wait` was set.
 */
export class Service extends EventTarget {
	wait = null;
	explains = true;
	card = null; // of the chosen model, once it is loaded
	model = ""; // the chosen model; the default if empty
	storesLabels = false; // whether there is POST /feedback
	#loading = null;
	#failures = 0;
	#key = ""; // never stored

	constructor() {
		super();
		addEventListener("online", () => this.wait?.kind === "unreachable" && this.retryNow());
	}

	useKey(key) {
		this.#key = key;
		this.retryNow();
	}

	get hasKey() {
		return this.#key !== "";
	}

	/** End the wait. */
	retryNow() {
		if (this.wait) this.#set({ ...this.wait, until: 0 });
	}

	/** Choose a model. */
	use(model) {
		Object.assign(this, { model, card: null, explains: true });
		this.#loading = null;
		this.#set(this.wait);
	}

	/** The models, the default first, and what the service stores. */
	async models() {
		const models = await this.#get("models");
		this.storesLabels = models.feedback;
		return models;
	}

	/** Store the right label of an image, or remove it with null. Throws Problem. */
	async feedback(requestId, label) {
		const body = JSON.stringify({ request_id: requestId, label });
		await this.#request("feedback", { body, headers: { "Content-Type": "application/json" } });
	}

	/** Load the part of the model card that is shown. */
	loadCard() {
		const { model } = this;
		return (this.#loading ??= this.#get(`${model ? `models/${model}` : "model"}?fields=${FIELDS}`).then((card) => {
			if (model === this.model) this.card = card;
			return card;
		}));
	}

	/** The JSON at a path. Retries until it is loaded. */
	async #get(path) {
		for (;;) {
			try {
				return await (await this.#request(path, {})).json();
			} catch (problem) {
				if (!(problem instanceof Problem)) throw problem;
				this.#set({ kind: "broken", detail: problem.message, until: Infinity });
			}
		}
	}

	/**
	 * Classify and explain an image.
	 *
	 * Returns {model, result, label, views, method, stages, milliseconds, requestId}, without views, label and method if there is
	 * no /explain. Calls onstate() with "waiting" and "sending", and onprogress() with the bytes that were sent. Throws
	 * Problem or AbortError.
	 */
	async explain(file, { label, signal, onstate, onprogress }) {
		const { labels } = await this.loadCard();
		signal.throwIfAborted();
		const { model } = this;
		const query = { top_k: labels.length, ...(label && { label }), ...(model && { model }) };
		const options = { body: file, headers: { "Content-Type": "application/octet-stream" }, onprogress };
		const send = (path, more) => this.#request(`${path}?${new URLSearchParams({ ...query, ...more })}`, options, signal, onstate);
		const { explains } = this;
		const response = await (explains ? send("explain", { maps: Math.min(MAPS, labels.length) }) : send("predict")).catch((problem) => {
			if (!explains || ![404, 405, 501].includes(problem.status)) throw problem;
			this.explains = false;
			this.#set(this.wait);
			return send("predict");
		});
		const answer = await response.json();
		const stages = stagesOf(response.headers.get("Server-Timing") ?? "");
		const requestId = response.headers.get("X-Request-ID");
		return { ...answer, result: answer.result ?? answer.results[0], stages, milliseconds: response.milliseconds, requestId };
	}

	/** The result of a frame of the camera. Throws Problem or AbortError. */
	async classify(frame, signal, onstate) {
		const { labels } = await this.loadCard();
		const { model } = this;
		const query = new URLSearchParams({ top_k: Math.min(3, labels.length), ...(model && { model }) });
		const options = { body: frame, headers: { "Content-Type": "image/jpeg" } };
		return (await (await this.#request(`predict?${query}`, options, signal, onstate)).json()).results[0];
	}

	async #request(path, options, signal, onstate) {
		let interrupted = 0;
		for (;;) {
			if (this.#remaining > 0) onstate?.("waiting");
			await this.#waitOver(signal);
			const key = this.#key;
			const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
			onstate?.("sending");
			const sent = performance.now();
			let response;
			try {
				response = await (options.body ? post(path, { ...options, headers, signal }) : fetch(path, { headers, signal, cache: "no-store" }));
			} catch (error) {
				if (signal?.aborted) throw error;
				if (!(await this.#alive())) this.#unreachable();
				else if (++interrupted === 3) {
					throw new Problem(0, "not-sent", "Not sent", "the file may have changed or be too large: add it again");
				}
				continue;
			}
			response.milliseconds = performance.now() - sent;
			if (response.ok) {
				this.#available();
				return response;
			}
			const problem = await problemOf(response);
			if (response.status === 401) {
				if (key === this.#key) this.#set({ kind: "key", detail: problem.message, until: Infinity });
			} else if (response.status === 503 || response.status === 429) {
				const seconds = Number(response.headers.get("Retry-After")) || 1;
				const starting = ["not-ready", "not-alive"].includes(problem.kind);
				this.#pause(starting ? "starting" : "busy", problem.message, seconds);
			} else if ([502, 504].includes(response.status) && !problem.kind) {
				this.#unreachable(); // the error page of a proxy
			} else {
				this.#available();
				throw problem;
			}
		}
	}

	/** Milliseconds until the wait ends. */
	get #remaining() {
		return this.wait ? this.wait.until - Date.now() : 0;
	}

	/** Resolves when the wait is over. */
	async #waitOver(signal) {
		for (;;) {
			signal?.throwIfAborted();
			if (this.#remaining <= 0) return;
			await new Promise((resolve) => setTimeout(resolve, 100));
		}
	}

	/** Whether the service responds at all. */
	async #alive() {
		try {
			const { status } = await fetch("livez", { cache: "no-store" });
			return status === 200 || status === 503;
		} catch {
			return false;
		}
	}

	#unreachable() {
		if (this.wait?.kind === "unreachable" && this.wait.until > Date.now()) return; // set by another request
		this.#pause("unreachable", "", BACKOFF[Math.min(this.#failures++, BACKOFF.length - 1)]);
	}

	/** The longest requested wait applies. */
	#pause(kind, detail, seconds) {
		const until = Date.now() + seconds * 1000;
		if (!(this.wait?.until > until)) this.#set({ kind, detail, until });
	}

	#available() {
		this.#failures = 0;
		if (this.wait && this.wait.until <= Date.now()) this.#set(null);
	}

	#set(wait) {
		this.wait = wait;
		this.dispatchEvent(new Event("change"));
	}
}

/** Like fetch() with the method POST, but calls onprogress() with the number of bytes that were sent. */
function post(path, { headers, body, signal, onprogress }) {
	return new Promise((resolve, reject) => {
		const request = new XMLHttpRequest();
		const abort = () => request.abort();
		signal?.addEventListener("abort", abort);
		request.open("POST", path);
		request.responseType = "blob";
		for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
		request.upload.onprogress = ({ loaded }) => onprogress?.(loaded);
		request.onload = () => {
			const names = ["Content-Type", "Retry-After", "Server-Timing", "X-Request-ID"];
			const received = names.map((name) => [name, request.getResponseHeader(name)]).filter(([, value]) => value !== null);
			resolve(new Response(request.response, { status: request.status, headers: received }));
		};
		request.onerror = () => reject(new TypeError("there was no response"));
		request.onabort = () => reject(signal.reason);
		request.onloadend = () => signal?.removeEventListener("abort", abort);
		request.send(body);
	});
}

async function problemOf(response) {
	const json = /json/.test(response.headers.get("Content-Type"));
	const { type = "", title, detail } = json ? await response.json().catch(() => ({})) : {};
	const kind = type.startsWith("urn:") ? type.split(":").pop() : type;
	return new Problem(response.status, kind, title ?? `Status ${response.status}`, detail);
}

/** Server-Timing as [[name, milliseconds], ...], the last entry being the rest of the total. */
function stagesOf(header) {
	const entries = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]);
	const stages = entries.filter(([name]) => name !== "total");
	const total = entries.find(([name]) => name === "total")?.[1] ?? 0;
	if (entries.length) stages.push(["rest", Math.max(0, total - stages.reduce((sum, [, value]) => sum + value, 0))]);
	return stages;
}
