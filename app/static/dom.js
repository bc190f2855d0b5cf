const SVG = ["svg", "rect", "line", "text", "title"];

/** Make an element: h("button.quiet", {onclick: f}, "text", child), h("p", "text"). False and null are omitted. */
export function h(kind, attributes, ...children) {
	if (attributes?.constructor !== Object) return h(kind, {}, attributes, ...children);
	const [tag, name] = kind.split(".");
	if (name) attributes.class = name;
	const element = SVG.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) {
		if (value === false || value == null) continue;
		if (name.startsWith("on")) element[name] = value;
		else if (name.startsWith("--")) element.style.setProperty(name, value); // the policy forbids style attributes
		else element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...children.flat(Infinity).filter((child) => child || child === 0));
	return element;
}

export const find = (id) => document.getElementById(id);

/** Announce to screen readers. */
export const announce = (text) => (find("live").textContent = text);

/** Show a message, with a button "Undo" if there is something to undo, and announce it. Without text, remove it. */
export function notify(text = "", undo = null) {
	find("notice").hidden = !text;
	find("notice-text").textContent = text;
	find("undo").hidden = !undo;
	find("undo").onclick = () => {
		undo();
		notify();
	};
	if (text) announce(text);
}
