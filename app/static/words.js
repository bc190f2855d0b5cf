/** Answers in words and numbers for people. */

const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const count = (number) => (number === 10 ? "ten" : number);
export const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
export const sentence = (text = "") => capital(text).replace(/([^.!?])$/, "$1.");
export const thousands = (number) => number.toLocaleString("en");

/** 0.98765 -> "98.8 %"; never 0 or 100, for it is never certain. */
export function percent(share) {
	if (share > 0.9995) return "> 99.9 %";
	if (share < 0.0005) return "< 0.1 %";
	return `${tenths.format(share * 100)} %`;
}

/** Milliseconds, to a tenth where that says something. */
export const milliseconds = (value) => `${value < 100 ? tenths.format(value) : Math.round(value)} ms`;

/**
 * What an answer comes to: {kind, title, text}, kind one of "sure", "unsure", "other".
 *
 * "other" is a picture that looks like none of the classes; "unsure" one without a class that is likelier than all
 * others together, or below the service's least confidence.
 */
export function verdict(result, card) {
	const [first, second] = result.top_k;
	const [sure, next] = [first, second].map(({ label, probability }) => `${label}, ${percent(probability)}`);
	if (!result.accepted && result.in_distribution < card.out_of_distribution.threshold) {
		return { kind: "other", title: `Probably none of the ${count(card.labels.length)}`, text: `If it had to be one: ${sure}.` };
	}
	if (!result.accepted || first.probability < 0.5) {
		return { kind: "unsure", title: `Unsure: ${first.label} or ${second.label}`, text: `${capital(sure)}; ${next}.` };
	}
	return { kind: "sure", title: capital(first.label), text: `${percent(first.probability)} sure.` };
}
