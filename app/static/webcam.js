/** A photo from the camera of a computer. */

import { find, notify } from "./dom.js";

/** Show the camera in a dialogue. Resolves to a file, or to null if there is none. */
export async function photograph() {
	let stream;
	try {
		stream = await navigator.mediaDevices.getUserMedia({ video: true });
	} catch (error) {
		const reasons = { NotAllowedError: "This page may not use the camera.", NotFoundError: "There is no camera." };
		notify(reasons[error.name] ?? "The camera cannot be used. Browsers allow it with HTTPS only.");
		return null;
	}
	if (find("webcam").open) {
		for (const track of stream.getTracks()) track.stop();
		return null; // the button was pressed twice
	}
	const [dialogue, video] = [find("webcam"), find("webcam-video")];
	video.srcObject = stream;
	dialogue.returnValue = "";
	dialogue.showModal();
	await new Promise((resolve) => (dialogue.onclose = resolve));
	try {
		if (dialogue.returnValue !== "take" || !video.videoWidth) return null;
		const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
		canvas.getContext("2d").drawImage(video, 0, 0);
		return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 })], "photo.jpg", { type: "image/jpeg" });
	} finally {
		video.srcObject = null;
		for (const track of stream.getTracks()) track.stop();
	}
}
