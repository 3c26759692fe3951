"""An honest ledger: what a training step costs in bytes and operations, predicted, and held against a real step.

    from minitorch_peft.analysis.ledger import ledger, measure
    predicted = ledger(GPTConfig(...), LoraConfig(r=8), batch=(16, 128))
    rich.print(predicted.table())
    measure(model, LoraConfig(r=8), batch=(16, 128)).totals()      # the same, counted in a real step

**Weights, gradients and optimizer state** follow from the shapes of the parameters. **Activations and operations**
come of five small steps of a few rows and tokens: what the engine did and held is written down, every axis of every
array is fitted as a + bB + cT + dBT, and the step is played again on paper with the axes of the asked (B, T). So every
method is predicted without a word of it here: what it trains, and what its graph keeps, is what the engine was seen to
do.

``formulas.py`` says in closed form what comes out for full fine-tuning and over a frozen base: read that first.
``flops.py`` is the table of what an operation costs.
"""

from minitorch_peft.analysis.ledger.account import Ledger
from minitorch_peft.analysis.ledger.prediction import default_config, ledger, measure

__all__ = ["Ledger", "default_config", "ledger", "measure"]
