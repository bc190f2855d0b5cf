/** The service behind the page: one place that sends, waits where it is told to, and goes on by itself. */

const LONGEST = 2 ** 31 - 1; // of setTimeout
const BACKOFF = [1, 2, 4, 8, 10]; // seconds

/** What the service refused for good. */
export class Problem extends Error {
	constructor(status, kind, title, detail) {
		super(detail || title);
		Object.assign(this, { status, kind, title, detail });
	}
}

/**
 * Sends requests. While `wait` is set nobody sends; its `kind` is
 *   "busy"         503: at capacity
 *   "starting"     503: loading or going down
 *   "unreachable"  no answer at all
 *   "key"          401: an API key is needed
 *   "broken"       GET /model failed
 * and `until` says how long, in milliseconds of Date.now(). Event "change" tells of every change of it.
 */
export class Service extends EventTarget {
	wait = null;
	explains = true;
	#card = null;
	#misses = 0;
	#key = ""; // in memory alone

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

	/** The card of the weights; asked for until it is there. */
	card() {
		return (this.#card ??= this.#loadCard());
	}

	async #loadCard() {
		for (;;) {
			try {
				return await (await this.#request("model", {})).json();
			} catch (problem) {
				if (!(problem instanceof Problem)) throw problem;
				this.#set({ kind: "broken", detail: problem.message, until: Infinity });
			}
		}
	}

	/**
	 * Have a picture classified and explained.
	 *
	 * Gives {model, result, label, views, method, stages, milliseconds}; views, label and method are missing where the
	 * service has no /explain. Tells onstate() of "waiting" and "sending". Throws Problem, or an AbortError.
	 */
	async explain(file, { label, signal, onstate }) {
		const { labels } = await this.card();
		signal.throwIfAborted();
		const query = new URLSearchParams({ top_k: labels.length, ...(label && { label }) });
		const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
		const post = (path) => this.#request(`${path}?${query}`, options, signal, onstate);
		const { explains } = this;
		const response = await post(explains ? "explain" : "predict").catch((problem) => {
			if (!explains || ![404, 405].includes(problem.status)) throw problem;
			this.explains = false;
			this.#set(this.wait);
			return post("predict");
		});
		const answer = await response.json();
		const stages = stagesOf(response.headers.get("Server-Timing") ?? "");
		return { ...answer, result: answer.result ?? answer.results[0], stages, milliseconds: response.milliseconds };
	}

	async #request(path, options, signal, onstate) {
		let cut = 0;
		for (;;) {
			if (this.#left > 0) onstate?.("waiting");
			await this.#turn(signal);
			const key = this.#key;
			const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
			onstate?.("sending");
			const sent = performance.now();
			let response;
			try {
				response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
			} catch (error) {
				if (signal?.aborted) throw error;
				if (!(await this.#alive())) this.#miss();
				else if (++cut === 3) {
					throw new Problem(0, "not-sent", "Not sent", "the file may have been moved or changed, or be too large: add it again");
				}
				continue;
			}
			response.milliseconds = performance.now() - sent;
			if (response.ok) {
				this.#heard();
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
				this.#miss(); // a proxy's own page: nobody is behind it
			} else {
				this.#heard();
				throw problem;
			}
		}
	}

	/** Milliseconds of the wait to come. */
	get #left() {
		return this.wait ? this.wait.until - Date.now() : 0;
	}

	/** Come back when there is nothing to wait for. */
	async #turn(signal) {
		for (;;) {
			signal?.throwIfAborted();
			const left = this.#left;
			if (left <= 0) return;
			await new Promise((resolve) => {
				const done = () => {
					clearTimeout(timer);
					this.removeEventListener("change", done);
					signal?.removeEventListener("abort", done);
					resolve();
				};
				const timer = setTimeout(done, Math.min(left, LONGEST));
				this.addEventListener("change", done);
				signal?.addEventListener("abort", done);
			});
		}
	}

	/** Whether anybody answers, so that it was the request that failed and not the way there. */
	async #alive() {
		try {
			const { status } = await fetch("livez", { cache: "no-store" });
			return status === 200 || status === 503;
		} catch {
			return false;
		}
	}

	#miss() {
		if (this.wait?.kind === "unreachable" && this.wait.until > Date.now()) return; // told already
		this.#pause("unreachable", "", BACKOFF[Math.min(this.#misses++, BACKOFF.length - 1)]);
	}

	/** The longest wait asked for counts. */
	#pause(kind, detail, seconds) {
		const until = Date.now() + seconds * 1000;
		if (!(this.wait?.until > until)) this.#set({ kind, detail, until });
	}

	#heard() {
		this.#misses = 0;
		if (this.wait && this.wait.until <= Date.now()) this.#set(null);
	}

	#set(wait) {
		this.wait = wait;
		this.dispatchEvent(new Event("change"));
	}
}

async function problemOf(response) {
	const json = /json/.test(response.headers.get("Content-Type"));
	const { type = "", title, detail } = json ? await response.json().catch(() => ({})) : {};
	const kind = type.startsWith("urn:") ? type.split(":").pop() : type;
	return new Problem(response.status, kind, title ?? `The service answered ${response.status}`, detail);
}

/** Server-Timing as [[name, milliseconds], ...]: what is told, then the rest of the total. */
export function stagesOf(header) {
	const entries = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]);
	const stages = entries.filter(([name]) => name !== "total");
	const total = entries.find(([name]) => name === "total")?.[1] ?? 0;
	if (entries.length) stages.push(["rest", Math.max(0, total - stages.reduce((sum, [, value]) => sum + value, 0))]);
	return stages;
}
