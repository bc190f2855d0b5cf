/** Heat maps: what each cell of a view adds to a class's logit, drawn over the image. */

const SIDE = 256; // longer side of the drawing, pixels; the browser scales it smoothly
const HATCH = 10; // distance of the lines where there is no view, pixels
// matplotlib's viridis from 0.4 to 1: perceptually uniform, and safe for people who are colour-blind.
const COLOURS = [
	[42, 120, 142],
	[34, 139, 141],
	[37, 161, 134],
	[70, 184, 117],
	[120, 206, 88],
	[184, 222, 41],
	[253, 231, 37],
];

/** Cubic B-spline at a position of 0..1 along `cells` cells: four pairs [cell, weight]. */
function taps(place, cells) {
	const at = place * cells - 0.5;
	const low = Math.floor(at);
	const t = at - low;
	const weights = [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3];
	return weights.map((weight, i) => [Math.min(cells - 1, Math.max(0, low - 1 + i)), weight / 6]);
}

/** The pixels whose centre lies between `from` and `to`: [pixel, taps, weight]. The weight falls to 0 at the edges. */
function inside(from, to, size, cells) {
	const pixels = [];
	for (let i = Math.max(0, Math.ceil(from - 0.5)); i < size && i + 0.5 < to; i++) {
		const place = (i + 0.5 - from) / (to - from);
		pixels.push([i, taps(place, cells), Math.min(1, cells * Math.min(place, 1 - place)) + 1e-6]);
	}
	return pixels;
}

/**
 * The positive part of the views' maps, smoothed. Overlapping views are averaged; the weight of a view falls towards
 * its edges, which hides the seams.
 *
 * Returns {width, height, values: Float32Array, NaN where there is no view, maximum, peak: [x, y] of 0..1, or null if
 * nothing is positive, covered: whether the views cover the image}.
 */
export function heatOf(views, imageWidth, imageHeight) {
	const scale = SIDE / Math.max(imageWidth, imageHeight);
	const [width, height] = [imageWidth, imageHeight].map((side) => Math.max(1, Math.round(side * scale)));
	const values = new Float32Array(width * height);
	const weights = new Float32Array(width * height);
	for (const { box, map } of views) {
		const [left, top, right, bottom] = box.map((edge) => edge * scale);
		const columns = inside(left, right, width, map[0].length);
		for (const [y, rows, rowWeight] of inside(top, bottom, height, map.length)) {
			for (const [x, cells, columnWeight] of columns) {
				let sum = 0;
				for (const [row, a] of rows) for (const [column, b] of cells) sum += a * b * Math.max(0, map[row][column]);
				values[y * width + x] += sum * rowWeight * columnWeight;
				weights[y * width + x] += rowWeight * columnWeight;
			}
		}
	}
	let maximum = 0;
	let peak = null;
	for (let i = 0; i < values.length; i++) {
		values[i] /= weights[i]; // NaN without a view
		if (values[i] > maximum) {
			maximum = values[i];
			peak = [((i % width) + 0.5) / width, (Math.floor(i / width) + 0.5) / height];
		}
	}
	return { width, height, values, maximum, peak, covered: !weights.includes(0) };
}

/** Red, green, blue of 0..255 and opacity of 0..1 for a value of 0..1. The opacity grows with the value. */
export function colourOf(value) {
	const place = value * (COLOURS.length - 1);
	const low = Math.min(Math.floor(place), COLOURS.length - 2);
	return [...COLOURS[low].map((from, channel) => from + (COLOURS[low + 1][channel] - from) * (place - low)), value ** 1.5];
}

const LEVELS = 255;
const TABLE = Array.from({ length: LEVELS + 1 }, (_, level) => colourOf(level / LEVELS));
const [LINE, GAP] = [[255, 255, 255, 0.75], [0, 0, 0, 0]];

/** Draw it on the canvas over the image. `full` is the value that gets the last colour. */
export function drawHeat(canvas, { width, height, values }, full) {
	Object.assign(canvas, { width, height });
	const image = new ImageData(width, height);
	const { data } = image;
	for (let i = 0; i < values.length; i++) {
		const hatch = ((i % width) + Math.floor(i / width)) % HATCH < 2 ? LINE : GAP;
		const [red, green, blue, alpha] = TABLE[Math.round(LEVELS * Math.min(1, values[i] / (full || 1)))] ?? hatch; // NaN: hatch
		data[i * 4] = red;
		data[i * 4 + 1] = green;
		data[i * 4 + 2] = blue;
		data[i * 4 + 3] = alpha * 255;
	}
	canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A position of 0..1 as text: "on the left". */
export function placeOf([x, y]) {
	const third = (value, ...names) => names[Math.min(2, Math.floor(value * 3))];
	const [row, column] = [third(y, "upper", "", "lower"), third(x, "left", "", "right")];
	if (row && column) return `in the ${row} ${column}`;
	if (column) return `on the ${column}`;
	return row ? `at the ${row === "upper" ? "top" : "bottom"}` : "in the middle";
}
