// Takes up the newest state of the page every few seconds, unless someone is at work on it.
"use strict";
(() => {
  const main = document.querySelector("main[data-refresh]");
  if (!main || !window.fetch || !window.DOMParser) return;
  const fresh = document.getElementById("fresh");
  const seconds = Number(main.dataset.refresh) || 10;
  const busy = () =>
    document.hidden || main.querySelector("details[open]") || (document.activeElement && main.contains(document.activeElement));
  const address = new URL(location.href);
  address.searchParams.delete("done");
  if (address.href !== location.href) history.replaceState(null, "", address.pathname + address.search + address.hash);
  const look = async () => {
    if (busy()) return;
    try {
      const reply = await fetch(address.href.split("#")[0], { credentials: "same-origin", headers: { accept: "text/html" } });
      if (!reply.ok || reply.redirected || busy()) throw new Error(String(reply.status));
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      const newer = page.querySelector("main[data-refresh]");
      if (!newer) throw new Error("no page");
      const at = window.scrollY;
      main.replaceChildren(...newer.childNodes);
      window.scrollTo(window.scrollX, at);
      fresh.replaceChildren(...page.getElementById("fresh").childNodes);
      fresh.classList.remove("stale");
    } catch {
      fresh.classList.add("stale");
    }
  };
  setInterval(look, seconds * 1000);
})();
