// TurboDoctor's report needs more room than a node without inputs gets.

import { app } from "../../scripts/app.js";

const SIZE = [760, 560];

app.registerExtension({
  name: "TurboWan.Doctor",
  nodeCreated(node) {
    if (node.comfyClass === "TurboDoctor") node.setSize(SIZE);
  },
});
