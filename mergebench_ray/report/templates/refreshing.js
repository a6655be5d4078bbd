// A page that is served shows what was scored since: by itself, unless somebody has begun to use it.
let used = false;
for (const kind of ["pointerdown", "keydown", "input"]) addEventListener(kind, () => { used = true; });
setInterval(async () => {
  if (document.hidden) return;
  let found;
  try {
    found = await fetch(location.href, {method: "HEAD", cache: "no-store"});
  } catch {
    return; // the server has ended; what it said stays
  }
  if (!found.ok || JSON.parse(found.headers.get("ETag")) === document.body.dataset.version) return;
  if (used) document.getElementById("newer").hidden = false;
  else location.reload();
}, 5000);
