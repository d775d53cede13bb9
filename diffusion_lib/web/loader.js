// Starts the apps of a page: each one's script is fetched when the reader comes near it.
(() => {
  "use strict";
  const base = document.currentScript.src.replace(/[^/]*$/, "");
  const scripts = {};

  function load(name) {
    scripts[name] ??= new Promise((done, failed) => {
      const script = document.createElement("script"); // works from file://, where fetch does not
      script.src = `${base}${name}.js`;
      script.onload = done;
      script.onerror = () => failed(new Error(`${name}.js is missing`));
      document.head.append(script);
    });
    return scripts[name];
  }

  async function start(element) {
    const name = element.dataset.app;
    try {
      await load(name);
      await globalThis.DiffusionApps[name](element, { ...element.dataset, base });
    } catch (error) {
      console.warn("An app of this page could not start:", error);
      const note = document.createElement("p");
      note.className = "dl-note";
      note.setAttribute("role", "status");
      note.textContent =
        "The live version of this could not be loaded. Reload the page to try again.";
      element.append(note); // below the picture that stands in for the app
    }
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        start(target);
      }
    },
    { rootMargin: "200px" },
  );
  for (const element of document.querySelectorAll(".dl-app[data-app]")) seen.observe(element);
})();
