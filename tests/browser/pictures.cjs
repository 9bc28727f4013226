// Takes a picture of each workflow's graph in ComfyUI's real frontend, cut to the nodes, and one of a node with its help.
// usage: node pictures.cjs CONFIG.json   with {playwright, chromium, url, workflows: {name: graph}, help, shots}

const path = require("node:path");
const { config, withPage, ready, load, openHelp, run } = require("./browser.cjs");

const MARGIN = 24; // around the outermost nodes
const PANELS = { left: 80, top: 110 }; // of the page, where the frontend's own panels lie
const VIEWPORT = { width: 2300, height: 1000 };
// The panel with the help takes a fifth of the page's width; the node is moved beside it.
const HELP_VIEWPORT = { width: 2200, height: 1000 };
const HELP_CLIP = { x: 1250, y: 100, width: 950, height: 760 };
const HELP_NODE = { x: 1360, y: 260 };

async function main(page) {
  await ready(page);
  for (const [name, graph] of Object.entries(config.workflows)) {
    await load(page, graph);
    const clip = await place(page);
    await page.waitForTimeout(1500);
    await page.screenshot({ path: path.join(config.shots, `${name}.png`), clip });
  }
}

async function helpPage(page) {
  await ready(page);
  await openHelp(page, config.help);
  await page.evaluate(({ x, y }) => {
    const { canvas, graph } = window.app;
    const corner = canvas.canvas.getBoundingClientRect();
    const [left, top] = graph.nodes[0].boundingRect;
    canvas.ds.scale = 1;
    canvas.ds.offset[0] = x - corner.left - left;
    canvas.ds.offset[1] = y - corner.top - top;
    canvas.setDirty(true, true);
  }, HELP_NODE);
  await page.waitForTimeout(800);
  await page.screenshot({ path: path.join(config.shots, "help.png"), clip: HELP_CLIP });
}

// Moves the graph beside the panels and returns the part of the page that its nodes cover, notes left out.
async function place(page) {
  return page.evaluate(
    ({ margin, panels }) => {
      const { canvas, graph } = window.app;
      const nodes = graph.nodes.filter((node) => !node.type.endsWith("Note"));
      const boxes = nodes.map((node) => [...node.boundingRect]);
      const left = Math.min(...boxes.map(([x]) => x));
      const top = Math.min(...boxes.map(([, y]) => y));
      const right = Math.max(...boxes.map(([x, , width]) => x + width));
      const bottom = Math.max(...boxes.map(([, y, , height]) => y + height));
      const corner = canvas.canvas.getBoundingClientRect();
      canvas.ds.scale = 1;
      canvas.ds.offset[0] = panels.left + margin - corner.left - left;
      canvas.ds.offset[1] = panels.top + margin - corner.top - top;
      canvas.setDirty(true, true);
      return { x: panels.left, y: panels.top, width: right - left + 2 * margin, height: bottom - top + 2 * margin };
    },
    { margin: MARGIN, panels: PANELS },
  );
}

run(async () => {
  await withPage({ viewport: VIEWPORT }, main);
  await withPage({ viewport: HELP_VIEWPORT }, helpPage);
});
