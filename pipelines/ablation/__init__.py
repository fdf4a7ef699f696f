"""The ablation section of a recipe: its variants, the nodes that train and score them, and the tables they end in.

ablation: {after: attention, stages: [adapt], tables: [table-3, table-4]}
"""
