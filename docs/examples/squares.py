"""The operators in a detector of 60 lines that only needs torch and ``resobj_d2.ops``.

It learns to find bright and dark squares in noise, in 15 seconds on a CPU::

    python docs/examples/squares.py

Four operators do the work that such projects usually implement themselves: labels without the IoU
matrix, focal loss from integer labels, GIoU loss on decoded boxes, and NMS per class.
"""

import argparse

import torch
from torch import nn

from resobj_d2 import ops

SIZE, STRIDE, CLASSES = 64, 8, 2


def make_images(count, generator):
    """Noise with one or two squares: images (N, 1, 64, 64), and each image's boxes and classes."""
    images = 0.1 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    boxes, classes = [], []
    for image in images:
        squares, kinds = [], []
        for _ in range(int(torch.randint(1, 3, (), generator=generator))):
            side = int(torch.randint(10, 24, (), generator=generator))
            x, y = torch.randint(0, SIZE - side, (2,), generator=generator).tolist()
            kind = int(torch.randint(CLASSES, (), generator=generator))
            image[0, y : y + side, x : x + side] += 1.0 if kind == 0 else -1.0
            squares.append([x, y, x + side, y + side])
            kinds.append(kind)
        boxes.append(torch.tensor(squares, dtype=torch.float32))
        classes.append(torch.tensor(kinds))
    return images, boxes, classes


def make_anchors():
    """(R, 4): a square of 16 pixels at every cell."""
    centre = torch.arange(SIZE // STRIDE) * float(STRIDE) + STRIDE / 2
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    centre = torch.stack((x, y), dim=-1).reshape(-1, 2)
    return torch.cat((centre - 8, centre + 8), dim=1)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for width in (16, 32, 64):  # each layer halves the resolution
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(64, CLASSES + 4, 3, padding=1)
        nn.init.constant_(self.head.bias[:CLASSES], -4.0)  # scores start near .02

    def forward(self, images, anchors):
        """Class logits (N, R, K) and boxes (N, R, 4)."""
        out = self.head(self.body(images)).permute(0, 2, 3, 1).flatten(1, 2)
        return out[..., :CLASSES], anchors + 8 * out[..., CLASSES:]


def loss_of(logits, pred, anchors, boxes, classes):
    sizes = [len(x) for x in boxes]
    match = ops.match_anchors(anchors, torch.cat(boxes), sizes, thresholds=[0.3, 0.4],
                              labels=[0, -1, 1])  # fmt: skip
    matched = [b[i] for b, i in zip(boxes, match.gt_index, strict=True)]
    kinds = torch.stack([c[i] for c, i in zip(classes, match.gt_index, strict=True)])
    foreground = match.label == 1
    labels = torch.where(foreground, kinds, torch.where(match.label == 0, CLASSES, -1))
    cls = ops.sigmoid_focal_loss(logits, labels)  # CLASSES is background, -1 ignored
    box = ops.giou_loss(pred, torch.stack(matched), foreground)
    return (cls + box) / foreground.sum().clamp(min=1)


@torch.no_grad()
def recall(model, anchors, images, boxes, classes):
    """Fraction of the squares with a detection of their class at an IoU of .5 or more."""
    hits, total = 0, 0
    logits, pred_boxes = model(images, anchors)
    for scores, pred, truth, kinds in zip(
        logits.sigmoid(), pred_boxes, boxes, classes, strict=True
    ):
        best, predicted = scores.max(dim=1)
        row = torch.nonzero(best > 0.3).flatten()
        row = row[ops.batched_nms(pred[row], best[row], predicted[row], 0.5, 20)]
        ious = ops.pairwise_box_iou(truth, pred[row])
        right = (ious >= 0.5) & (kinds[:, None] == predicted[row])
        hits += int(right.any(dim=1).sum())
        total += len(truth)
    return hits / total


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args(argv).steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model, anchors = Detector(), make_anchors()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        images, boxes, classes = make_images(16, generator)
        loss = loss_of(*model(images, anchors), anchors, boxes, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}")
    share = recall(model, anchors, *make_images(64, torch.Generator().manual_seed(1)))
    print(f"recall of 64 new images: {share:.2f}")
    return share


if __name__ == "__main__":
    main()
