// What the theme leaves out for readers without a mouse or a screen: a name of the search, and code that can be scrolled.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
document.querySelectorAll(".md-typeset pre > code").forEach((code) => (code.tabIndex = 0));
