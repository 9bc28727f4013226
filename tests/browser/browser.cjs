// What both drivers share: a chromium with ComfyUI's frontend in it, and a workflow on its canvas.

const fs = require("node:fs");

const config = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const TIMEOUT = 60_000;

// Opens a page of that size, calls `use(page)` with it, and closes the browser whatever happens.
async function withPage(options, use) {
  const { chromium } = require(config.playwright);
  const browser = await chromium.launch({ executablePath: config.chromium, headless: true, args: FLAGS });
  try {
    const page = await browser.newPage(options);
    page.setDefaultTimeout(TIMEOUT);
    return await use(page);
  } finally {
    await browser.close();
  }
}

async function ready(page) {
  await page.goto(config.url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager?.command);
  await page.waitForTimeout(2000);
}

async function load(page, graph) {
  await page.evaluate((graph) => window.app.loadGraphData(graph, true, true), graph);
  await page.waitForTimeout(1000);
}

// Leaves a node of that type alone on the canvas, with its help beside it.
async function openHelp(page, type) {
  await page.evaluate((type) => {
    const app = window.app;
    app.graph.clear();
    const node = window.LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
  }, type);
  await page.waitForTimeout(400);
  const button = page.locator('[data-testid="info-button"], button:has(.icon-\\[lucide--info\\])').first();
  await button.click({ timeout: 10_000 });
  await page.waitForTimeout(1200);
}

function run(main) {
  main().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}

module.exports = { config, withPage, ready, load, openHelp, run };
