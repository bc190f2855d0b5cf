/** Heat maps: what each cell of a view adds to a class's logit, drawn over the image. */

const SIDE = 256; // longer side of the drawing, pixels; the browser scales it smoothly
// From zero to the maximum, as red, green, blue, opacity (after matplotlib's inferno).
const COLOURS = [
	[13, 8, 60, 0.66],
	[66, 10, 104, 0.6],
	[147, 38, 103, 0.5],
	[221, 81, 58, 0.42],
	[252, 165, 10, 0.36],
	[252, 255, 164, 0.36],
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
 * The positive part of the views' maps, smoothed and divided by its maximum. Overlapping views are averaged; the weight
 * of a view falls towards its edges, which hides the seams.
 *
 * Returns {width, height, values: Float32Array, peak: [x, y] of 0..1, or null if nothing is positive}.
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
	let best = 0;
	for (let i = 0; i < values.length; i++) {
		values[i] /= weights[i] || 1;
		if (values[i] > values[best]) best = i;
	}
	const maximum = values[best];
	const peak = maximum > 0 ? [((best % width) + 0.5) / width, (Math.floor(best / width) + 0.5) / height] : null;
	return { width, height, values: values.map((value) => value / (maximum || 1)), peak };
}

/** Draw it on the canvas over the image. */
export function drawHeat(canvas, heat) {
	canvas.width = heat.width;
	canvas.height = heat.height;
	const image = new ImageData(heat.width, heat.height);
	heat.values.forEach((value, i) => {
		const place = value * (COLOURS.length - 1);
		const low = Math.min(Math.floor(place), COLOURS.length - 2);
		COLOURS[low].forEach((from, channel) => {
			const mixed = from + (COLOURS[low + 1][channel] - from) * (place - low);
			image.data[i * 4 + channel] = channel === 3 ? mixed * 255 : mixed;
		});
	});
	canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The position of the peak as text. */
export function placeOf([x, y]) {
	const third = (value, ...names) => names[Math.min(2, Math.floor(value * 3))];
	return `in the ${`${third(y, "upper", "", "lower")} ${third(x, "left", "middle", "right")}`.trim()}`;
}
