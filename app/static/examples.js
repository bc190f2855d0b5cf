/** Example images: photos in the public domain, and drawings made here. */

export const SIDE = 256;

function ship(c) {
	const shape = (colour, ...points) => {
		c.fillStyle = colour;
		c.beginPath();
		for (const [x, y] of points) c.lineTo(x, y);
		c.fill();
	};
	c.fillStyle = "#b9cedf";
	c.fillRect(0, 0, SIDE, SIDE);
	c.fillStyle = "#48718c";
	c.fillRect(0, 168, SIDE, 88);
	shape("#f4f4f2", [70, 108], [190, 108], [196, 146], [64, 146]);
	shape("#e4e4e0", [92, 82], [166, 82], [172, 108], [88, 108]);
	shape("#c8452f", [118, 50], [142, 50], [144, 82], [116, 82]);
	shape("#26384a", [18, 142], [238, 142], [212, 190], [46, 190]);
	shape("#9c3526", [38, 178], [221, 178], [212, 190], [46, 190]);
	for (let x = 80; x < 184; x += 16) c.fillRect(x, 120, 8, 8);
}

function tiles(c) {
	for (let i = 0; i < 64; i++) {
		c.fillStyle = `hsl(${(i * 131) % 360} 75% ${45 + (i % 3) * 12}%)`;
		c.fillRect((i % 8) * 32, (i >> 3) * 32, 32, 32);
	}
}

const credit = (photographer) => `Photo by ${photographer}, in the public domain (CC0).`;
const DRAWING = "Drawn by this page.";

/** Name to {photo: URL, or draw: function of a canvas context, note, label: its class in the shipped weights}. */
export const EXAMPLES = {
	cat: { photo: "static/cat.jpg", note: credit("Stefan van der Walt"), label: "cat" },
	coffee: { photo: "static/coffee.jpg", note: credit("Rachel Michetti") },
	"drawn ship": { draw: ship, note: DRAWING, label: "ship" },
	"coloured tiles": { draw: tiles, note: DRAWING },
};
