// What the theme leaves to do for readers without a mouse.

// Ctrl+K opens the search; so does "/", where it is not being typed into something.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  event.preventDefault();
  document.querySelector(".search-button__button").click();
});

// A box that scrolls takes the focus, so that the arrow keys reach what is cut off. The theme does so for code only.
const reachable = () => {
  for (const box of document.querySelectorAll("div.math, mjx-container[display='true'], .pst-scrollable-table-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reachable));
addEventListener("resize", reachable);
