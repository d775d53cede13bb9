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

  // What scrolls by itself can be reached and scrolled by keyboard.
  async function reachable() {
    await window.MathJax?.startup?.promise;
    for (const e of document.querySelectorAll(
      "article :is(.math, mjx-container[display], pre, .cell_output, .pst-scrollable-table-container, .dl-diagram)",
    ))
      if (e.scrollWidth > e.clientWidth + 1) e.tabIndex = 0;
  }
  addEventListener("load", reachable);
  addEventListener("resize", reachable);

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
