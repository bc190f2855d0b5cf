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

/** A limit in bytes, as in 20,000,000: "20 MB". */
function size(bytes) {
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

/** The result of an image by its verdict: {kind, title, text}, kind one of "confident", "uncertain", "other". */
export function summarize(result, card) {
	const [first, second] = result.top_k;
	const things = count(card.labels.length);
	if (result.verdict === "other") {
		return { kind: "other", title: `Probably none of the ${things} things it knows`, text: `The closest is ${one(first.label)}.` };
	}
	if (result.verdict === "accepted") {
		return { kind: "confident", title: capital(first.label), text: `${capital(percentInWords(first.probability))} sure.` };
	}
	const typical = result.in_distribution >= card.out_of_distribution.thresholds.accepted;
	const title = `Looks most like ${one(first.label)}, but ${typical ? "it is hard to tell" : "not a typical one"}`;
	const text = typical ? `It may also be ${one(second.label)}.` : `It may also be none of the ${things} things it knows.`;
	return { kind: "uncertain", title, text, reason: typical ? "unclear" : "not typical" };
}
