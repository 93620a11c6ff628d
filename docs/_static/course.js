// The ledger's filter, search and sort. Without this file every page can still be read whole.
"use strict";

function ledger(table, tools) {
  const claims = [...table.tBodies].map((body) => ({ body, text: body.textContent.toLowerCase() }));

  function filter() {
    const { topic, method, verdict, words } = tools.elements;
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const { body, text } of claims) {
      const { dataset } = body;
      const fits = [topic, method, verdict].every(({ name, value }) => !value || dataset[name] === value);
      body.hidden = !fits || !wanted.every((word) => text.includes(word));
      shown += !body.hidden;
    }
    tools.querySelector("output").textContent = `${shown} of ${claims.length} claims`;
  }

  function sort(button) {
    const up = !button.classList.contains("up");
    const key = (claim) => claim.body.dataset[button.dataset.sort] ?? "";
    const order = (a, b) => (a === "") - (b === "") || (up ? 1 : -1) * a.localeCompare(b, "en", { numeric: true });
    const numbers = (a, b) => (a === "") - (b === "") || (up ? a - b : b - a);
    const compare = claims.every((claim) => !isNaN(key(claim))) ? numbers : order;
    claims.sort((a, b) => compare(key(a), key(b)));
    table.append(...claims.map((claim) => claim.body));
    table.querySelectorAll("th button").forEach((other) => other.classList.remove("up", "down"));
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    button.classList.add(up ? "up" : "down");
    button.closest("th").setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  function follow() { // #topic=...&verdict=... is how the scoreboard points here
    if (!location.hash.includes("=")) return;
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const name of ["topic", "method", "verdict", "words"]) tools.elements[name].value = chosen.get(name) ?? "";
    filter();
  }

  for (const name of table.querySelectorAll("span[data-sort]")) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name.textContent });
    button.dataset.sort = name.dataset.sort;
    button.addEventListener("click", () => sort(button));
    name.replaceWith(button);
  }
  tools.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", follow);
  tools.hidden = false;
  filter();
  follow();
}

function unfold() { // a link to a folded record opens it
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") target.open = true;
}

const tools = document.getElementById("ledger-tools");
if (tools) ledger(document.querySelector("table.ledger"), tools);
window.addEventListener("hashchange", unfold);
unfold();
