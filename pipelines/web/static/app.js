"use strict";
document.documentElement.classList.add("js");

// Filters apply as they are changed; without scripts their button does it.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-instant]");
  if (form) { form.requestSubmit(); }
});
