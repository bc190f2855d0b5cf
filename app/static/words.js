/** Results as text. */

// 81.25 % is rounded to even, as in the documents.
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1, roundingMode: "halfEven" });
const NUMBERS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

export const count = (number) => NUMBERS[number] ?? thousands(number);
export const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
export const sentence = (text = "") => capital(text).replace(/([^.!?])$/, "$1.");
export const thousands = (number) => number.toLocaleString("en");
export const plural = (number, noun) => `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;

/** 0.98765 -> "98.8%"; never 0 or 100%. */
export function percent(share) {
	if (share > 0.9995) return ">99.9%";
	if (share < 0.0005) return "<0.1%";
	return `${tenths.format(share * 100)}%`;
}

/** The same within a sentence: "more than 99.9%". */
export const percentInWords = (share) => percent(share).replace(">", "more than ").replace("<", "less than ");

/** Milliseconds, with one decimal below 100. */
export const milliseconds = (value) => `${value < 100 ? tenths.format(value) : Math.round(value)} ms`;

/** "a frog", "an airplane"; a label that is not one English word is quoted. */
const one = (label) => (/^[a-z]+$/.test(label) ? `${/^[aeiou]/.test(label) ? "an" : "a"} ${label}` : `“${label}”`);

/** A number of bytes: "20 MB". */
export function size(bytes) {
	const [divisor, unit] = bytes < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
	return `${Number((bytes / divisor).toFixed(1))} ${unit}`;
}

/** A warning of the service, for people. */
export const warningText = (text, { input: { crop } }) =>
	sentence(text.replace(/^upscaled from (\d+)x(\d+)$/, `small image: enlarged from $1 × $2 for the ${crop} × ${crop} pixels of the network`));

/** The detail of a problem, for people. */
export function problemText({ kind, detail = "" }) {
	const [, limit] = (kind === "body-too-large" && /more than ([\d,]+) bytes/.exec(detail)) || [];
	return limit ? `This file is over ${size(Number(limit.replaceAll(",", "")))}.` : sentence(detail);
}

const REASONS = { "body-too-large": "too large", "picture-too-large": "too large", "unreadable-picture": "damaged", "bad-upload": "empty" };

/** Why an image failed, in up to three words: "damaged". */
export function reasonOf({ kind, title, detail = "" }) {
	if (kind !== "unsupported-picture") return REASONS[kind] ?? title;
	const [, format] = /^this is (?:an? )?(.+?), which/.exec(detail) ?? [];
	return format ?? "not an image";
}

// Below this probability, and below this multiple of the limit of typical images, a heading says "maybe" or "probably".
const SURE = 0.7;
const MARGIN = 2;

/** The result of an image: {kind, title, text, reason}, kind one of "confident", "uncertain", "other". */
export function summarize(result, card) {
	const [first, second] = result.top_k;
	const things = `${count(card.labels.length)} things it knows`;
	if (result.verdict === "other") {
		return { kind: "other", title: `Probably none of the ${things}`, text: `The closest is ${one(first.label)}.` };
	}
	const { accepted } = card.out_of_distribution.thresholds;
	const how = `${capital(percentInWords(first.probability))} sure`;
	if (result.in_distribution < accepted) {
		const text = `It is not typical of ${one(first.label)}, so it may be none of the ${things}.`;
		return { kind: "uncertain", title: `Maybe ${one(first.label)}, or something else`, text, reason: "not typical" };
	}
	if (result.verdict !== "accepted" || first.probability < SURE) {
		const text = `${how}. ${capital(one(second.label))} has ${percentInWords(second.probability)}.`;
		return { kind: "uncertain", title: `Maybe ${one(first.label)}, or ${one(second.label)}`, text, reason: "unclear" };
	}
	if (result.in_distribution < MARGIN * accepted) {
		return { kind: "uncertain", title: `Probably ${one(first.label)}`, text: `${how}, but it is hardly a typical one.`, reason: "hardly typical" };
	}
	return { kind: "confident", title: capital(first.label), text: `${how}.` };
}

/** The label of an image that shows none of the classes, as POST /feedback accepts it. */
export const NONE = "none of these";

/** The label that the page gives an image. */
export const labelOf = (result, card) => (summarize(result, card).kind === "other" ? NONE : result.top_k[0].label);

/** How typical an image is of the classes, in one word. */
export function typicality(share, { accepted, uncertain }) {
	return share < uncertain ? "no" : share < accepted ? "hardly" : "yes";
}
