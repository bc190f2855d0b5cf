/** Example images. NOTICE has their sources and licences. */

const JESPER = "Photo by Jesper K. Pedersen (GPL 2 or later).";
const SCRATCH = "Photo from Scratch, by MIT (CC BY-SA 3.0).";

/** Name to note, for the classes of the shipped weights. The photo is static/NAME.jpg. */
export const CLASSES = {
	airplane: SCRATCH,
	automobile: SCRATCH,
	bird: "Photo by Jar0d (CC BY-SA 2.0).",
	cat: "Photo by Stefan van der Walt, in the public domain (CC0).",
	deer: "Photo by Ryan Hagerty, in the public domain.",
	dog: JESPER,
	frog: "Photo by Pere Pujal i Carabantes (GPL 2 or later).",
	horse: "Photo from Childsplay, by Stas Zytkiewicz (GPL 2 or later).",
	ship: SCRATCH,
	truck: "Photo by Aaron M. Lang (CC BY 2.5).",
};

/** The same for other things. The shipped weights take the last two for a cat and a dog. */
export const OTHERS = {
	coffee: "Photo by Rachel Michetti, in the public domain (CC0).",
	tiger: "A tiger is none of the classes: a model that is sure of one is wrong. Photo from Pexels (CC0).",
	rabbit: `A rabbit is none of the classes: a model that is sure of one is wrong. ${JESPER}`,
};
