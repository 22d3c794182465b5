// Keeps the page of an import up to date until it is over. Without it the page reloads itself.
"use strict";

const job = document.querySelector("[data-progress]");
const words = job.querySelector("#words");
const bar = job.querySelector("progress");

async function look() {
  try {
    const answer = await fetch(job.dataset.progress, { redirect: "error" });
    if (answer.status === 503) throw new Error("busy");
    const now = answer.ok ? await answer.json() : { over: true };
    if (now.over) return location.reload();
    if (words.textContent !== now.words) words.textContent = now.words;
    if (now.total) {
      bar.max = now.total;
      bar.value = now.done;
    } else {
      bar.removeAttribute("value");
    }
  } catch {
    // The server is busy, or being restarted, or the session is over: a page load will tell.
    if (++failures > 20) return location.reload();
  }
  setTimeout(look, 700);
}

let failures = 0;
setTimeout(look, 300);
