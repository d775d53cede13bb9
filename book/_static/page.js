// What every page needs of scripts.
(() => {
  "use strict";
  // A slider's sheet of pictures loads when the slider comes within a screen of what is seen. The
  // style sheet holds it back until then (.dl-scrub in custom.css).
  const sliders = document.querySelectorAll(".dl-scrub");
  const show = (slider) => slider.classList.add("dl-near");
  const watch = new IntersectionObserver(
    (entries) =>
      entries
        .filter((entry) => entry.isIntersecting)
        .forEach(({ target }) => {
          show(target);
          watch.unobserve(target);
        }),
    { rootMargin: "100% 0px" },
  );
  sliders.forEach((slider) => watch.observe(slider));

  // The search quotes from the pages that it finds, which a browser forbids in a folder.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // A line never begins with the comma after a formula, nor ends with the bracket before it.
  function tie(formula) {
    const before = formula.previousSibling;
    const after = formula.nextSibling;
    const open = (before?.nodeType === 3 && before.data.match(/[(\[“]$/)?.[0]) || "";
    const close = (after?.nodeType === 3 && after.data.match(/^[.,;:!?)\]”’-]+/)?.[0]) || "";
    if (!open && !close) return;
    const span = document.createElement("span");
    span.className = "dl-tied";
    formula.replaceWith(span);
    span.append(open, formula, close);
    if (open) before.data = before.data.slice(0, -open.length);
    if (close) after.data = after.data.slice(close.length);
  }

  // Nor does it end within "3 × 3".
  function tieProducts(article) {
    const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const { data, parentElement } = texts.currentNode;
      if (/\d × \d/.test(data) && !parentElement.closest("pre, script, style, svg"))
        texts.currentNode.data = data.replace(/(\d) × (?=\d)/g, "$1\u00a0×\u00a0");
    }
  }

  // "Solution to" comes before its link, and the blank between them before the link too.
  for (const { firstChild: text } of document.querySelectorAll(
    "article .solution > .admonition-title > a",
  ))
    if (text?.nodeType === 3 && text.data.startsWith(" ")) {
      text.data = text.data.slice(1);
      text.parentElement.before(" ");
    }

  // A formula that is wider than its column may break after a relation, a plus or a minus.
  const OPERATORS = /mjx-c(3D|2B|2212|2248|2264|2265|221D|223C|2192|2261)\b/;
  function breakUp(formula) {
    const drawn = formula.querySelector("mjx-math");
    for (const old of formula.querySelectorAll("wbr")) old.remove(); // the page was narrower
    formula.classList.remove("dl-breaks");
    if (!drawn || drawn.getBoundingClientRect().width <= formula.clientWidth + 1) return;
    const signs = formula.querySelectorAll("mjx-math > mjx-mo");
    for (const sign of signs)
      if (OPERATORS.test(sign.innerHTML)) sign.after(document.createElement("wbr"));
    formula.classList.toggle("dl-breaks", !!formula.querySelector("wbr"));
  }

  // What scrolls by itself can be reached and scrolled by keyboard, and shows where there is more.
  const more = (e) => {
    const hidden = e.scrollWidth - e.clientWidth - e.scrollLeft;
    e.classList.toggle("dl-more", hidden > parseFloat(getComputedStyle(e).paddingRight) + 1);
  };
  function reachable() {
    for (const e of document.querySelectorAll("article span.math")) breakUp(e);
    for (const e of document.querySelectorAll(
      "article :is(.math, mjx-container[display], pre, .cell_output, .pst-scrollable-table-container, .dl-diagram, td)",
    )) {
      const scrolls = getComputedStyle(e).overflowX === "auto";
      if (scrolls) more(e);
      if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0;
    }
  }
  // Not every system has a font for the MathML of a quiz. MathJax brings its own.
  async function drawQuizzes() {
    const formulas = [...document.querySelectorAll(".dl-quiz math[data-tex]")].map((old) => {
      const formula = document.createElement("span");
      formula.className = "math";
      formula.textContent = `\\(${old.dataset.tex}\\)`;
      old.replaceWith(formula);
      return formula;
    });
    await MathJax.typesetPromise(formulas);
  }

  addEventListener("load", async () => {
    document.querySelectorAll("article").forEach(tieProducts);
    await window.MathJax?.startup?.promise;
    if (window.MathJax?.typesetPromise) await drawQuizzes();
    document.querySelectorAll("article span.math").forEach(tie);
    reachable();
    addEventListener("resize", reachable);
    document.addEventListener(
      "scroll",
      ({ target }) => target.tabIndex === 0 && target.classList && more(target),
      { capture: true, passive: true },
    );
  });

  // Paper is light whatever the screen is, and has all pictures.
  const root = document.documentElement;
  let theme;
  addEventListener("beforeprint", () => {
    sliders.forEach(show);
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => (root.dataset.theme = theme));
})();
