/** Heat maps: what each cell of a view adds to a class's logit, drawn over the image as model/heatmap.py draws it. */

const SIDE = 256; // longer side of the drawing, pixels; the browser scales it smoothly
const HATCH = 10; // distance of the lines where there is no view, pixels
// Every sixteenth colour of "inferno", as in model/heatmap.py.
const INFERNO = [
	..."000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61".split(" "),
	..."bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4".split(" "),
].map((colour) => [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16)));
const [OPACITY, COLDEST] = [0.7, 0.25];

/** The value between b and c, at a distance of 0..1 from b: the cubic function of Pillow's BICUBIC. */
const cubic = (a, b, c, d, t) => b + t * (c - a + t * (2 * (a - b) + c - d + t * (b - a + d - c)));

const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));

/**
 * The positive part of a view's map, times its weight, for each pixel of the view, with a border of one cell. The border
 * is cold, so the heat fades out, except at an edge of the image.
 */
function gridOf({ box, map, weight = 1 }, scale, width, height) {
	const [left, top, right, bottom] = box.map((edge) => edge * scale);
	const [wide, high] = [(right - left) / map[0].length, (bottom - top) / map.length];
	const rows = map.map((row) => row.map((value) => (Math.max(0, value) * weight) / (wide * high)));
	const sides = (row) => [left < 0.5 ? row[0] : 0, ...row, right > width - 0.5 ? row.at(-1) : 0];
	const inner = rows.map(sides);
	const cold = inner[0].map(() => 0);
	const cells = [top < 0.5 ? inner[0] : cold, ...inner, bottom > height - 0.5 ? inner.at(-1) : cold];
	return { cells, left, top, right, bottom, wide, high, hottest: Math.max(...rows.flat()) };
}

/** The positions of pixels among cells: [pixel, the four cells around it, distance from the second]. */
function positions(from, size, cell, cells) {
	const found = [];
	for (let pixel = 0; pixel < size; pixel++) {
		const at = 1 + (pixel + 0.5 - from) / cell;
		if (at < 0 || at >= cells) continue;
		const low = Math.floor(at - 0.5);
		found.push([pixel, [-1, 0, 1, 2].map((step) => clamp(low + step, cells)), at - 0.5 - low]);
	}
	return found;
}

/** The middle of the hottest pixels, of which there may be many. */
function peakOf(values, maximum, width, height) {
	const hottest = [];
	values.forEach((value, i) => value > 0.999 * maximum && hottest.push([((i % width) + 0.5) / width, (Math.floor(i / width) + 0.5) / height]));
	const [x, y] = [0, 1].map((axis) => hottest.reduce((sum, place) => sum + place[axis], 0) / hottest.length);
	const distance = ([a, b]) => Math.hypot(a - x, b - y);
	return hottest.reduce((nearest, place) => (distance(place) < distance(nearest) ? place : nearest));
}

/**
 * The evidence for a class: the maps of all views, times their weights, added up at their places in the image.
 *
 * Returns {width, height, values: Float32Array, seen: Uint8Array, 1 where there is a view, maximum, peak: [x, y] of
 * 0..1, or null if nothing is positive, covered: whether the views cover the image}.
 */
export function heatOf(views, imageWidth, imageHeight) {
	const scale = SIDE / Math.max(imageWidth, imageHeight);
	const [width, height] = [imageWidth, imageHeight].map((side) => Math.max(1, Math.round(side * scale)));
	const values = new Float32Array(width * height);
	const seen = new Uint8Array(width * height);
	for (const view of views) {
		const { cells, left, top, right, bottom, wide, high, hottest } = gridOf(view, scale, width, height);
		const columns = positions(left, width, wide, cells[0].length);
		for (const [y, rows, down] of positions(top, height, high, cells.length)) {
			for (const [x, [a, b, c, d], across] of columns) {
				const crossed = rows.map((row) => cubic(cells[row][a], cells[row][b], cells[row][c], cells[row][d], across));
				values[y * width + x] += Math.min(hottest, Math.max(0, cubic(...crossed, down))); // it overshoots
			}
		}
		for (let y = Math.max(0, Math.ceil(top - 0.5)); y < height && y + 0.5 < bottom; y++) {
			seen.fill(1, y * width + Math.max(0, Math.ceil(left - 0.5)), y * width + Math.min(width, Math.ceil(right - 0.5)));
		}
	}
	const maximum = values.reduce((most, value) => Math.max(most, value), 0);
	return { width, height, values, seen, maximum, peak: maximum ? peakOf(values, maximum, width, height) : null, covered: !seen.includes(0) };
}

/** Red, green, blue of 0..255 and opacity of 0..1 for a value of 0..1. The opacity grows with the value. */
export function colourOf(value) {
	const place = (COLDEST + (1 - COLDEST) * value) * (INFERNO.length - 1);
	const low = Math.min(Math.floor(place), INFERNO.length - 2);
	return [...INFERNO[low].map((from, channel) => from + (INFERNO[low + 1][channel] - from) * (place - low)), OPACITY * value];
}

const LEVELS = 255;
const TABLE = Array.from({ length: LEVELS + 1 }, (_, level) => colourOf(level / LEVELS));
const [LINE, GAP] = [[255, 255, 255, 0.75], [0, 0, 0, 0]];

/** Draw it on the canvas over the image. `full` is the value that gets the last colour. */
export function drawHeat(canvas, { width, height, values, seen }, full) {
	Object.assign(canvas, { width, height });
	const image = new ImageData(width, height);
	values.forEach((value, i) => {
		const hatch = ((i % width) + Math.floor(i / width)) % HATCH < 2 ? LINE : GAP;
		const heat = TABLE[Math.floor(LEVELS * Math.min(1, value / (full || 1)))];
		const [red, green, blue, alpha] = seen[i] || value ? heat : hatch;
		image.data.set([red, green, blue, alpha * 255], i * 4);
	});
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
