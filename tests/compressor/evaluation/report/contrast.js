// Returns the texts of the page whose contrast with what is behind them is under 4.5 to 1.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = ([r, g, b, a], below) => [r, g, b].map((part, index) => part * a + below[index] * (1 - a));
const behind = (node) => {
  if (!node) return [255, 255, 255];
  const colour = rgba(getComputedStyle(node).backgroundColor);
  return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(node.parentElement));
};
const luminance = (colour) => {
  const [r, g, b] = colour.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const poor = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.getClientRects().length || node.closest("option, title, .offscreen")) continue;
  const style = getComputedStyle(node);
  const ground = behind(node);
  const ink = over(rgba(node instanceof SVGElement ? style.fill : style.color), ground);
  const found = contrast(ink, ground);
  if (found < 4.5) poor.set(`${node.tagName}.${node.getAttribute("class")}`, `${found.toFixed(2)} ${walker.currentNode.data.slice(0, 30)}`);
}
return [...poor].map((pair) => pair.join(": "));
