/** The camera: a photo, or the class of what it sees. */

import { find, notify } from "./dom.js";

const INTERVAL = 250; // milliseconds between two frames, at least
const FRAME = 192; // longer side of a frame that is classified, pixels

/**
 * Show the camera in a dialogue. Resolves to a file, or to null if there is none.
 *
 * classify: null, or an async function of a frame (Blob) and an AbortSignal, to {title, text}. Its last result is shown.
 */
export async function photograph(classify = null) {
	let stream;
	try {
		stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
	} catch (error) {
		const reasons = { NotAllowedError: "This page may not use the camera.", NotFoundError: "There is no camera." };
		notify(reasons[error.name] ?? "The camera cannot be used. Browsers allow it with HTTPS only.");
		return null;
	}
	const [dialogue, video] = [find("webcam"), find("webcam-video")];
	if (dialogue.open) {
		for (const track of stream.getTracks()) track.stop();
		return null; // the button was pressed twice
	}
	const live = new AbortController();
	video.srcObject = stream;
	dialogue.returnValue = "";
	find("seen").hidden = !classify;
	dialogue.showModal();
	if (classify) watch(video, classify, live.signal);
	await new Promise((resolve) => (dialogue.onclose = resolve));
	live.abort();
	try {
		if (dialogue.returnValue !== "take" || !video.videoWidth) return null;
		return new File([await frameOf(video, Infinity)], "photo.jpg", { type: "image/jpeg" });
	} finally {
		video.srcObject = null;
		for (const track of stream.getTracks()) track.stop();
	}
}

/** Classify one frame after the other until the signal aborts. */
async function watch(video, classify, signal) {
	show("Looking …", "");
	while (!signal.aborted) {
		const next = performance.now() + INTERVAL;
		if (video.videoWidth && !document.hidden) {
			try {
				const { title, text } = await classify(await frameOf(video, FRAME), signal);
				if (!signal.aborted) show(title, text);
			} catch (error) {
				if (!signal.aborted) show("Not classified", error.message);
			}
		}
		await new Promise((resolve) => setTimeout(resolve, Math.max(50, next - performance.now())));
	}
}

function show(title, text) {
	if (find("seen-title").textContent !== title) find("seen-title").textContent = title; // it is announced
	find("seen-text").textContent = text;
}

/** What the camera sees, as a JPEG. */
function frameOf(video, side) {
	const { videoWidth: width, videoHeight: height } = video;
	const scale = Math.min(1, side / Math.max(width, height));
	const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
	canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
	return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}
