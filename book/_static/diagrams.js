// Draws the page's mermaid diagrams in the theme's colours, and again when the reader switches
// between light and dark. On failure the diagram's text stays visible.
(() => {
  "use strict";
  const diagrams = [...document.querySelectorAll(".dl-diagram")].map((box) => ({
    box,
    text: box.textContent,
  }));

  async function draw() {
    if (!document.documentElement.dataset.theme) return; // not chosen yet: its colours are unknown
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ink = colour("--pst-color-text-base");
    const line = colour("--pst-color-text-muted");
    const fill = colour("--pst-color-surface");
    const ground = colour("--pst-color-background");
    window.mermaid.initialize({
      startOnLoad: false,
      securityLevel: "strict",
      suppressErrorRendering: true,
      theme: "base",
      fontFamily: getComputedStyle(document.body).fontFamily,
      themeVariables: {
        darkMode: document.documentElement.dataset.theme === "dark",
        background: ground,
        primaryColor: fill,
        primaryTextColor: ink,
        primaryBorderColor: colour("--pst-color-primary"),
        secondaryColor: fill,
        tertiaryColor: ground,
        lineColor: line,
        textColor: ink,
        edgeLabelBackground: ground,
      },
    });
    for (const [i, { box, text }] of diagrams.entries()) {
      try {
        const { svg } = await window.mermaid.render(`dl-diagram-${i}`, text);
        box.innerHTML = svg;
        const drawing = box.firstElementChild;
        drawing.setAttribute("aria-hidden", "true");
        // On a phone the words must stay legible: shrink this far, then scroll inside the box.
        drawing.style.minWidth = `${Math.min(0.7 * drawing.viewBox.baseVal.width, 600)}px`;
      } catch (error) {
        console.error("A diagram could not be drawn:", error);
      }
    }
  }

  let last = Promise.resolve();
  const redraw = () => (last = last.then(draw));
  redraw();
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
})();
