/** Results as text. */

const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (number) => (number === 10 ? "ten" : number);
export const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
export const sentence = (text = "") => capital(text).replace(/([^.!?])$/, "$1.");
export const thousands = (number) => number.toLocaleString("en");

/** 0.98765 -> "98.8 %"; never 0 or 100 %. */
export function percent(share) {
	if (share > 0.9995) return "> 99.9 %";
	if (share < 0.0005) return "< 0.1 %";
	return `${tenths.format(share * 100)} %`;
}

/** Milliseconds, with one decimal below 100. */
export const milliseconds = (value) => `${value < 100 ? tenths.format(value) : Math.round(value)} ms`;

/**
 * The summary of a result: {kind, title, text}, kind one of "confident", "uncertain", "other".
 *
 * "uncertain": the verdict, or no class with a probability of 0.5 or more.
 */
export function summarize(result, card) {
	const [first, second] = result.top_k;
	const [best, next] = [first, second].map(({ label, probability }) => `${label}, ${percent(probability)}`);
	const none = `none of the ${count(card.labels.length)}`;
	if (result.verdict === "other") {
		return { kind: "other", title: `Probably ${none}`, text: `It does not resemble the images of any class. The closest is ${first.label}.` };
	}
	if (result.in_distribution < card.out_of_distribution.thresholds.accepted) {
		return { kind: "uncertain", title: `Uncertain: ${first.label} or ${none}`, text: `${capital(best)}, if it is one of the classes.` };
	}
	if (!result.accepted || first.probability < 0.5) {
		return { kind: "uncertain", title: `Uncertain: ${first.label} or ${second.label}`, text: `${capital(best)}; ${next}.` };
	}
	return { kind: "confident", title: capital(first.label), text: `${percent(first.probability)} probability.` };
}
