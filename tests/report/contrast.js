// Text against what is behind it, as WCAG 2.2 measures it: at least 4.5. Returns what is below.
() => {
  const parse = (c) => { const [r, g, b, a = 1] = c.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
  const behind = (e) => {
    const stack = [];
    for (; e; e = e.parentElement) stack.push(getComputedStyle(e).backgroundColor);
    canvas.fillStyle = '#fff'; canvas.fillRect(0, 0, 1, 1);
    stack.reverse().forEach((c) => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); });
    return canvas;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const bad = new Set();
  for (const e of document.querySelectorAll('body *:not(svg *):not(script):not(template):not(:disabled)')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const paper = [...behind(e).getImageData(0, 0, 1, 1).data];
    canvas.fillStyle = getComputedStyle(e).color; canvas.fillRect(0, 0, 1, 1);
    const ink = [...canvas.getImageData(0, 0, 1, 1).data];
    const [a, b] = [light(ink), light(paper)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.add(`${ratio.toFixed(2)} ${e.tagName} ${e.className}`);
  }
  return [...bad];
}
