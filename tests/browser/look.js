// Everything that is wrong to look at on a report, as a list of sentences; empty if nothing is.
() => {
  const found = [];
  const name = (element) => (element.textContent || element.tagName).trim().slice(0, 40);
  const shrunk = (r, by) => ({ left: r.left + by, right: r.right - by, top: r.top + by, bottom: r.bottom - by });
  const within = (a, b, by) => a.left >= b.left - by && a.right <= b.right + by && a.top >= b.top - by && a.bottom <= b.bottom + by;
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

  const root = document.documentElement;
  if (root.scrollWidth > window.innerWidth) found.push(`the page is ${root.scrollWidth} wide in a window of ${window.innerWidth}`);

  for (const card of document.querySelectorAll(".card, dl.figures div")) {
    if (card.scrollWidth > card.clientWidth) found.push(`${card.id}: its content is wider than the card`);
    const box = card.getBoundingClientRect();
    for (const part of card.querySelectorAll("h2, p, td, th, dt, dd, svg"))
      if (!within(part.getBoundingClientRect(), box, 0.5)) found.push(`${card.id}: ${name(part)} leaves the card`);
  }
  const cards = [...document.querySelectorAll(".card")].map((card) => [card.id, shrunk(card.getBoundingClientRect(), 1)]);
  cards.forEach(([a, boxA], i) => cards.slice(i + 1).forEach(([b, boxB]) => { if (meet(boxA, boxB)) found.push(`cards ${a} and ${b} overlap`); }));

  for (const figure of document.querySelectorAll("figure")) {
    const svg = figure.querySelector("svg");
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
    if (!texts.length) found.push(`${figure.id}: no text`);
    const boxes = texts.map((t) => [name(t), t.getBoundingClientRect()]);
    texts.forEach((t) => {
      const pixels = parseFloat(getComputedStyle(t).fontSize) * scale;
      if (pixels < 10) found.push(`${figure.id}: ${name(t)} is only ${pixels.toFixed(1)} pixels high`);
    });
    boxes.forEach(([what, box], i) => {
      if (!within(box, frame, 0.5)) found.push(`${figure.id}: ${what} is cut off`);
      boxes.slice(i + 1).forEach(([other, otherBox]) => {
        if (meet(shrunk(box, 0.8), shrunk(otherBox, 0.8))) found.push(`${figure.id}: ${what} and ${other} overlap`);
      });
    });
  }

  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  const page = ids.filter((id) => !/^[a-z][0-9a-f]{10}$/.test(id)); // matplotlib's own are made of their content
  page.filter((id, i) => page.indexOf(id) !== i).forEach((id) => found.push(`the id ${id} is there twice`));
  for (const use of document.querySelectorAll("use"))
    if (!document.querySelector(CSS.escape ? `#${CSS.escape(use.getAttribute("href").slice(1))}` : "*")) found.push(`nothing to use: ${use.getAttribute("href")}`);

  const colour = (text) => (text.match(/[\d.]+/g) || []).slice(0, 3).map(Number);
  const light = (text) => colour(text).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const paper = getComputedStyle(document.querySelector(".card")).backgroundColor;
  for (const t of document.querySelectorAll(".card h2, .card p, .card td, .card th, .card text")) {
    const ink = t.tagName === "text" ? getComputedStyle(t).fill : getComputedStyle(t).color;
    if (contrast(ink, paper) < 4.5) found.push(`${name(t)} is hard to read: contrast ${contrast(ink, paper).toFixed(1)}`);
  }
  const probe = document.createElement("i");
  document.body.append(probe);
  for (const variable of ["--normal", "--anomaly", "--limit", "--other"]) {
    probe.style.color = `var(${variable})`;
    const ratio = contrast(getComputedStyle(probe).color, paper);
    if (ratio < 3) found.push(`${variable} is hard to see: contrast ${ratio.toFixed(1)}`);
  }
  probe.remove();
  return [...new Set(found)];
}
