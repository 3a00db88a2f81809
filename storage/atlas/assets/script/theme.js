// Runs in the head, before the first paint, so that a dark page never flashes white.
(() => {
  let kept = null;
  try {
    kept = localStorage.getItem("atlas-theme");
  } catch {
    // Storage is refused on some file:// pages; the system's preference decides then.
  }
  const dark = kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
